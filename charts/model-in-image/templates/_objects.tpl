{{/* Prefix of the names: a release with the name of the chart has the names of the manifests. */}}
{{- define "model-in-image.prefix" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 35 | trimSuffix "-" -}}
{{- end -}}

{{/* Label of the traffic of a release, with which its selectors differ from those of other releases. */}}
{{- define "model-in-image.instance" -}}
{{- ternary "main" .Release.Name (eq .Release.Name .Chart.Name) -}}
{{- end -}}

{{/*
The Deployments of each role: the kustomizations of manifests/ that make each of them from the base. `server` is the one
behind the Service of the clients. `models` are called by the server only, and exist once for each release of models.
*/}}
{{- define "model-in-image.roles" -}}
web_single: {server: [web_single]}
synchronous: {server: [synchronous]}
prediction_cache: {server: [prediction_cache]}
edge: {server: [edge]}
data_cache: {server: [data_cache]}
asynchronous: {server: [asynchronous, jobs, jobs/managed_redis], worker: [jobs/worker, jobs, jobs/managed_redis]}
sync_async: {server: [sync_async, jobs, jobs/managed_redis], worker: [jobs/worker, jobs, jobs/managed_redis]}
prep: {server: [prep_pred], models: {pred: [backend, prep_pred/pred]}}
gateway:
  server: [horizontal]
  models:
    setosa: [backend, horizontal/setosa]
    versicolor: [backend, horizontal/versicolor]
    virginica: [backend, horizontal/virginica]
{{- end -}}

{{/* Returns the image: list $ TAG-OF-THE-MANIFESTS TAG. The variant of the manifests (-full, -edge) is added to the tag. */}}
{{- define "model-in-image.image" -}}
{{- $image := (index . 0).Values.image -}}
{{/* The tag of a release of models is that of an earlier image. */}}
{{- if and $image.digest (not (index . 2)) -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $variant := regexFind "-(full|edge)$" (index . 1) -}}
{{- $tag := index . 2 | default $image.tag | default (index . 0).Chart.AppVersion -}}
{{- printf "%s:%s%s" $image.repository (trimSuffix $variant $tag) $variant -}}
{{- end -}}
{{- end -}}

{{/* Returns a value as text. Helm reads whole numbers as floating-point numbers, and prints large ones with an exponent. */}}
{{- define "model-in-image.text" -}}
{{- if kindIs "float64" . }}{{ ternary (toString (int64 .)) (toString .) (eq (floor .) .) }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{/* Applies the values to a Deployment: dict top, object, values, variant, tag. */}}
{{- define "model-in-image.deployment" -}}
{{- $top := .top -}}
{{- $spec := .object.spec -}}
{{- $pod := $spec.template.spec -}}
{{- $container := first $pod.containers -}}
{{- $_ := set $container "image" (include "model-in-image.image" (list $top .variant .tag)) -}}
{{- with $top.Values.image.pullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end -}}
{{- include "model-in-image.merge" (list $container (dict "resources" (.values.resources | default dict))) -}}
{{- range $name, $value := $top.Values.env -}}
{{- $variable := dict "name" $name "value" (include "model-in-image.text" $value) -}}
{{- include "model-in-image.merge" (list $container (dict "env" (list $variable))) -}}
{{- end -}}
{{- include "model-in-image.merge" (list $pod $top.Values.pod) -}}
{{- include "model-in-image.merge" (list $spec.template.metadata (dict "annotations" $top.Values.podAnnotations)) -}}
{{- if and (not .values.autoscaling.enabled) (not (kindIs "invalid" .values.replicas)) -}}
{{- $_ := set $spec "replicas" (int .values.replicas) -}}
{{- end -}}
{{- end -}}

{{/* Applies the values to an autoscaler: list OBJECT VALUES. */}}
{{- define "model-in-image.autoscaler" -}}
{{- $spec := (index . 0).spec -}}
{{- $values := index . 1 -}}
{{- range $key := list "minReplicas" "maxReplicas" -}}
{{- with get $values $key }}{{ $_ := set $spec $key (int .) }}{{ end -}}
{{- end -}}
{{- range $metric := $spec.metrics -}}
{{- with get $values $metric.resource.name -}}
{{- $_ := set $metric.resource.target "averageUtilization" (int .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Prints the objects of one Deployment: dict top, values, tag, kustomizations, models (the release of models, or ""), public
(whether clients reach it), calls (whether the additional egress is for it).
*/}}
{{- define "model-in-image.component" -}}
{{- $arguments := . -}}
{{- $top := .top -}}
{{- range $file := list "deployment" "service" "hpa" "pdb" "networkpolicy" -}}
{{- $object := include "model-in-image.read" (list $top (printf "base/%s.yml" $file)) | fromYaml -}}
{{- $variant := "" -}}
{{- range $path := $arguments.kustomizations -}}
{{- $text := include "model-in-image.read" (list $top (printf "%s/kustomization.yml" $path)) -}}
{{- with $arguments.models }}{{ $text = replace "models-1" (printf "models-%s" (include "model-in-image.text" .)) $text }}{{ end -}}
{{- $kustomization := fromYaml $text -}}
{{- include "model-in-image.kustomize" (list $object $kustomization) -}}
{{- range $kustomization.images }}{{ $variant = .newTag }}{{ end -}}
{{- end -}}
{{- if eq $file "deployment" -}}
{{- include "model-in-image.deployment" (dict "top" $top "object" $object "values" $arguments.values "variant" $variant "tag" $arguments.tag) -}}
{{- else if eq $file "hpa" -}}
{{- include "model-in-image.autoscaler" (list $object $arguments.values.autoscaling) -}}
{{- if not $arguments.values.autoscaling.enabled }}{{ $_ := set $object "deleted" true }}{{ end -}}
{{- else if and (eq $file "service") $arguments.public -}}
{{- include "model-in-image.service" (list $object $top.Values.service) -}}
{{- end -}}
{{- if and (eq $file "networkpolicy") $arguments.calls $top.Values.egress -}}
{{- $_ := set $object.spec "egress" (concat ($object.spec.egress | default list) $top.Values.egress) -}}
{{- end -}}
{{- if not $object.deleted }}
---
{{ toYaml $object }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Applies the values to the Service of the clients: list OBJECT VALUES. */}}
{{- define "model-in-image.service" -}}
{{- $spec := (index . 0).spec -}}
{{- $values := index . 1 -}}
{{- $port := first $spec.ports -}}
{{- with $values.type }}{{ $_ := set $spec "type" . }}{{ end -}}
{{- if and (eq $spec.type "NodePort") $values.nodePort -}}
{{- $_ := set $port "nodePort" (int $values.nodePort) -}}
{{- else if ne $spec.type "NodePort" -}}
{{- $_ := unset $port "nodePort" -}}
{{- end -}}
{{- end -}}

{{/* Prints a file of manifests/ with labels and annotations: list OBJECT VALUES. */}}
{{- define "model-in-image.extra" -}}
{{- $object := index . 0 -}}
{{- $values := index . 1 -}}
{{- include "model-in-image.merge" (list $object.metadata (dict "labels" ($values.labels | default dict))) -}}
{{- with $values.annotations }}{{ $_ := set $object.metadata "annotations" . }}{{ end }}
---
{{ toYaml $object }}
{{- end -}}
