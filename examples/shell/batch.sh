#!/bin/sh
# Batch: scores a CSV file, and copies the column of the id. It needs no server. Usage: batch.sh
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/flowers.csv" <<'END'
id,sepal_length,sepal_width,petal_length,petal_width
a,5.1,3.5,1.4,0.2
b,6.7,3.1,4.7,1.5
c,7.2,3.6,6.1,2.5
END
"$root/bin/batch" "$folder/flowers.csv" "$folder/scored.csv" --keep id
cat "$folder/scored.csv"
