# Functions of switch and promote. They resize a Deployment together with its autoscaler.
namespace=model-in-image
timeout=${SWITCH_TIMEOUT:-300s}
# The annotation with the range of an autoscaler before a release, as MIN,MAX.
saved=iris-wsgi/range-before-release

k() { kubectl -n "$namespace" "$@"; }

say() { echo "${0##*/}: $*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Prints the number of pods that all Deployments of an instance should have. An instance is main, blue, or green.
size_of() {
    replicas=$(k get deployments -l "app.kubernetes.io/component=server,app.kubernetes.io/instance=$1" \
        -o 'jsonpath={range .items[*]}{.spec.replicas}{"\n"}{end}') || return 1
    echo "$replicas" | awk '{ pods += $1 } END { print pods + 0 }'
}

# Prints MIN,MAX of an autoscaler, or nothing if there is none.
range_of() {
    k get hpa "$1" --ignore-not-found -o 'jsonpath={.spec.minReplicas},{.spec.maxReplicas}'
}

# Prints the saved range of an autoscaler, or nothing.
saved_range_of() {
    k get hpa "$1" --ignore-not-found -o "jsonpath={.metadata.annotations.$saved}"
}

# Sets the range of an autoscaler, and the annotation with the saved range. null removes the annotation.
set_range() {
    k patch hpa "$1" --type merge \
        -p "{\"metadata\": {\"annotations\": {\"$saved\": $4}}, \"spec\": {\"minReplicas\": $2, \"maxReplicas\": $3}}" > /dev/null
}

# Raises a Deployment to a number of pods, and waits for all of them. The number becomes the minimum of the autoscaler, which otherwise
# would remove pods that have no traffic yet.
raise() {
    deployment=$1 hpa=$2 pods=$3
    range=$(range_of "$hpa") && before=$(saved_range_of "$hpa") || return 1
    if [ -n "$range" ]; then
        before=${before:-$range}
        [ "$pods" -ge "${before%,*}" ] || pods=${before%,*}
        max=${before#*,}
        [ "$pods" -le "$max" ] || max=$pods
        set_range "$hpa" "$pods" "$max" "\"$before\"" || return 1
    fi
    k scale "deployment/$deployment" --replicas "$pods" > /dev/null || return 1
    say "waiting for $pods pods of $deployment"
    k rollout status "deployment/$deployment" --timeout "$timeout"
}

# Gives an autoscaler the range that it had before the release. It removes surplus pods slowly.
lower() {
    before=$(saved_range_of "$1")
    [ -z "$before" ] || set_range "$1" "${before%,*}" "${before#*,}" null
}
