{{/*
The objects come from the files of manifests/, which is a link to the folder that `kubectl apply -k` reads. These
templates apply the kustomizations of that folder, as far as its files use the language of kustomize.
Maps are references in templates: each of these templates changes the object that it gets, and prints nothing.
*/}}

{{/* Returns a file of manifests/ with the names, the namespace, and the instance of this release: list $ PATH. */}}
{{- define "model-in-image.read" -}}
{{- $top := index . 0 -}}
{{- $path := printf "manifests/%s" (index . 1) -}}
{{- $text := required (printf "%s is not in the chart" $path) ($top.Files.Get $path) -}}
{{- $prefix := include "model-in-image.prefix" $top -}}
{{- $instance := include "model-in-image.instance" $top -}}
{{- $text = regexReplaceAll "model-in-image-(deployment|service|hpa|pdb|networkpolicy|ingress|route|monitor|rules)" $text (printf "%s-${1}" $prefix) -}}
{{- $text = regexReplaceAll "namespace: model-in-image\\b" $text (printf "namespace: %s" $top.Release.Namespace) -}}
{{- $text = regexReplaceAll "app.kubernetes.io/instance: main\\b" $text (printf "app.kubernetes.io/instance: %s" $instance) -}}
{{- $text = replace "key: app.kubernetes.io/instance, operator: In, values: [main]" (printf "key: app.kubernetes.io/instance, operator: In, values: [%s]" $instance) $text -}}
{{- if ne $instance "main" -}}
{{- $text = replace "app.kubernetes.io/instance: models-" (printf "app.kubernetes.io/instance: %s-models-" $instance) $text -}}
{{- end -}}
{{- $text = replace "model-in-image-redis" $top.Values.redis.secret $text -}}
{{- $text = replace "model-in-image-postgres" $top.Values.database.secret $text -}}
{{- replace "model-in-image-tokens" $top.Values.token.secret $text -}}
{{- end -}}

{{/* Merges a strategic merge patch into an object; items of lists are matched by name: list INTO PATCH. */}}
{{- define "model-in-image.merge" -}}
{{- $into := index . 0 -}}
{{- range $key, $value := index . 1 -}}
{{- $old := get $into $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $old) -}}
{{- include "model-in-image.merge" (list $old $value) -}}
{{- else if and (kindIs "slice" $value) (kindIs "slice" $old) (hasKey (first $value | default dict) "name") -}}
{{- include "model-in-image.mergeItems" (list $into $key $value) -}}
{{- else -}}
{{- $_ := set $into $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Merges the items of a list into the list of a map: list MAP KEY ITEMS. */}}
{{- define "model-in-image.mergeItems" -}}
{{- $map := index . 0 -}}
{{- $key := index . 1 -}}
{{- range $item := index . 2 -}}
{{- $found := false -}}
{{- range $old := get $map $key -}}
{{- if eq $old.name $item.name -}}
{{- $found = true -}}
{{/* An environment variable has either a value or a source. */}}
{{- if hasKey $item "valueFrom" }}{{ $_ := unset $old "value" }}{{ end -}}
{{- include "model-in-image.merge" (list $old $item) -}}
{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- $_ := set $map $key (append (get $map $key) $item) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Applies the operations of a JSON patch (RFC 6902), whose last step is the key of a map: list OBJECT OPERATIONS. */}}
{{- define "model-in-image.operations" -}}
{{- $object := index . 0 -}}
{{- range $operation := index . 1 -}}
{{- $steps := splitList "/" $operation.path | rest -}}
{{- $parent := $object -}}
{{- range $step := initial $steps -}}
{{- if kindIs "slice" $parent -}}
{{- $parent = index $parent (atoi $step) -}}
{{- else -}}
{{- $parent = get $parent $step -}}
{{- end -}}
{{- end -}}
{{- $key := last $steps | replace "~1" "/" -}}
{{- if eq $operation.op "remove" -}}
{{- $_ := unset $parent $key -}}
{{- else -}}
{{- $_ := set $parent $key $operation.value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Applies labels that are also selectors: list OBJECT LABELS. */}}
{{- define "model-in-image.labels" -}}
{{- $object := index . 0 -}}
{{- $labels := index . 1 -}}
{{- $spec := $object.spec -}}
{{- $maps := list $object.metadata.labels -}}
{{- if eq $object.kind "Deployment" -}}
{{- $maps = concat $maps (list $spec.selector.matchLabels $spec.template.metadata.labels) -}}
{{- range $spec.template.spec.topologySpreadConstraints -}}
{{- $maps = append $maps .labelSelector.matchLabels -}}
{{- end -}}
{{- else if eq $object.kind "Service" -}}
{{- $maps = append $maps $spec.selector -}}
{{- else if eq $object.kind "PodDisruptionBudget" -}}
{{- $maps = append $maps $spec.selector.matchLabels -}}
{{- else if eq $object.kind "NetworkPolicy" -}}
{{- $maps = append $maps $spec.podSelector.matchLabels -}}
{{- end -}}
{{- range $map := $maps -}}
{{- range $key, $value := $labels -}}
{{- $_ := set $map $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Applies a kustomization: list OBJECT KUSTOMIZATION. Its patches have been selected by component already. */}}
{{- define "model-in-image.kustomize" -}}
{{- $object := index . 0 -}}
{{- $kustomization := index . 1 -}}
{{- range $kustomization.patches -}}
{{- if regexMatch (printf "^(%s)$" .target.kind) $object.kind -}}
{{- if hasPrefix "- " .patch -}}
{{- include "model-in-image.operations" (list $object (fromYamlArray .patch)) -}}
{{- else if hasPrefix "$patch: delete" .patch -}}
{{- $_ := set $object "deleted" true -}}
{{- else -}}
{{- include "model-in-image.merge" (list $object.spec (fromYaml .patch).spec) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $kustomization.labels -}}
{{- include "model-in-image.labels" (list $object .pairs) -}}
{{- end -}}
{{- with $kustomization.nameSuffix -}}
{{- $_ := set $object.metadata "name" (print $object.metadata.name .) -}}
{{- if eq $object.kind "HorizontalPodAutoscaler" -}}
{{- $_ := set $object.spec.scaleTargetRef "name" (print $object.spec.scaleTargetRef.name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
