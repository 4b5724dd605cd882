#!/bin/sh
# Entry point of the stand-in for the image of PostgreSQL: makes the database of POSTGRES_USER on a new volume, then runs the command.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    password=$(mktemp)
    echo "$POSTGRES_PASSWORD" > "$password"
    initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$password" --auth-local trust --auth-host scram-sha-256 > /dev/null
    rm "$password"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses=''" --wait start > /dev/null
    createdb --username "$POSTGRES_USER" "${POSTGRES_DB:-$POSTGRES_USER}"
    pg_ctl --pgdata "$PGDATA" --mode fast --wait stop > /dev/null
fi
exec "$@" -c "listen_addresses=*"
