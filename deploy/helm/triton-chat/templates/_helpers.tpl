{{/* Names, labels and the parts that several objects share. */}}

{{- define "triton-chat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that what is made of it stays below the 63 of a name. */}}
{{- define "triton-chat.fullname" -}}
{{- $name := include "triton-chat.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of the selectors, which can never change: (dict "root" $ "component" "gateway"), and "track" where there are two. */}}
{{- define "triton-chat.selectorLabels" -}}
app.kubernetes.io/name: {{ include "triton-chat.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .track }}
triton-chat/track: {{ . }}
{{- end }}
{{- end -}}

{{/* Of pods: nothing that a new version of the chart changes, lest pods on scarce GPUs are replaced for it. */}}
{{- define "triton-chat.podLabels" -}}
{{ include "triton-chat.selectorLabels" . }}
app.kubernetes.io/part-of: triton-chat
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of every object; takes what selectorLabels takes. */}}
{{- define "triton-chat.labels" -}}
{{ include "triton-chat.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Name, namespace, labels: (dict "root" $ "component" "gateway" "name" "..."). */}}
{{- define "triton-chat.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "triton-chat.labels" . | nindent 2 }}
{{- end -}}

{{/* An image: (dict "root" $ "image" .Values.image.gateway). */}}
{{- define "triton-chat.image" -}}
{{- $path := list (trimSuffix "/" .root.Values.image.registry) .image.repository | compact | join "/" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $path .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "triton-chat.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "triton-chat.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What all pods have in common: the restricted Pod Security Standard, and no way to the Kubernetes API. */}}
{{- define "triton-chat.podSecurity" -}}
serviceAccountName: {{ include "triton-chat.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "triton-chat.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Where pods may run, as the values of a component say. */}}
{{- define "triton-chat.scheduling" -}}
{{- range $field := list "runtimeClassName" "priorityClassName" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with get $ $field }}
{{ $field }}: {{- if kindIs "string" . }} {{ . }}{{ else }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Times of a stop, in seconds. Each is longer than the one before: endpoints forget the pod while preStop sleeps, the
     engine then lets answers finish, Triton waits for that, and the kubelet for Triton. */}}
{{- define "triton-chat.preStopSeconds" -}}5{{- end -}}

{{- define "triton-chat.exitTimeoutSeconds" -}}
{{- add .Values.drainSeconds 5 -}}
{{- end -}}

{{- define "triton-chat.shortestGraceSeconds" -}}
{{- add (include "triton-chat.preStopSeconds" . | int) (include "triton-chat.exitTimeoutSeconds" . | int) 10 -}}
{{- end -}}

{{- define "triton-chat.graceSeconds" -}}
{{- .Values.terminationGracePeriodSeconds | int | default (include "triton-chat.shortestGraceSeconds" . | int) -}}
{{- end -}}

{{/* Of a server that failed its liveness probe. preStop runs then too. */}}
{{- define "triton-chat.deadGraceSeconds" -}}
{{- add (include "triton-chat.preStopSeconds" . | int) 5 -}}
{{- end -}}

{{/* Kubernetes wants it longer than minReadySeconds. */}}
{{- define "triton-chat.progressDeadlineSeconds" -}}
{{- add (include "triton-chat.loadSeconds" . | int) .Values.triton.minReadySeconds 3600 -}}
{{- end -}}

{{- define "triton-chat.preStop" -}}
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ include "triton-chat.preStopSeconds" . | quote }}]
{{- end -}}

{{/* The field that each kind of source cannot do without, as JSON. */}}
{{- define "triton-chat.sourceFields" -}}
{{- dict "hub" "id" "s3" "uri" "pvc" "claimName" "hostPath" "path" "image" "reference" | toJson -}}
{{- end -}}

{{/* The canary's checkpoint, as JSON: what canary.model says over what `model` says of the same kind of source. Of another
     kind, `model` gives the settings around the checkpoint (a mirror, a token), never the checkpoint itself. */}}
{{- define "triton-chat.canaryModel" -}}
{{- $stable := .Values.model -}}
{{- $own := .Values.canary.model -}}
{{- $source := $own.source | default $stable.source -}}
{{- $around := deepCopy (get $stable $source | default dict) -}}
{{- if ne $source $stable.source -}}
{{- $around = omit $around (get (include "triton-chat.sourceFields" . | fromJson) $source | default "") -}}
{{- end -}}
{{- $checkpoint := mustMergeOverwrite $around (deepCopy (get $own $source | default dict)) -}}
{{- dict "source" $source $source $checkpoint | toJson -}}
{{- end -}}

{{/* The tracks with what differs between them, as JSON: [{name, suffix, path, replicas, image, model, engine, adapters}]. */}}
{{- define "triton-chat.tracks" -}}
{{- $values := .Values -}}
{{- $tracks := list (dict
  "name" "stable" "suffix" "" "path" "" "replicas" $values.triton.replicas
  "model" $values.model "engine" $values.engine "adapters" $values.adapters
) -}}
{{- if $values.canary.enabled -}}
{{- $engine := mustMergeOverwrite (deepCopy $values.engine) $values.canary.engine -}}
{{- $adapters := $values.canary.adapters | default $values.adapters -}}
{{- /* What is of vLLM alone is nothing for a canary with another engine, unless it says so itself. */ -}}
{{- if ne ($engine.engine | default "native") "vllm" -}}
{{- $engine = ternary $engine (omit $engine "vllm") (hasKey $values.canary.engine "vllm") -}}
{{- $adapters = $values.canary.adapters -}}
{{- end -}}
{{- $tracks = append $tracks (dict
  "name" "canary" "suffix" "-canary" "path" "canary." "replicas" $values.canary.replicas
  "model" (include "triton-chat.canaryModel" . | fromJson)
  "engine" $engine "adapters" $adapters
) -}}
{{- end -}}
{{- range $track := $tracks -}}
{{- $kind := ternary "tritonVllm" "triton" (not (empty (include "triton-chat.usesVllm" (dict "root" $ "track" $track)))) -}}
{{- $own := ternary $values.canary.image dict (eq $track.name "canary") -}}
{{- $_ := set $track "image" (mustMergeOverwrite (deepCopy (get $values.image $kind)) $own) -}}
{{- end -}}
{{- toJson $tracks -}}
{{- end -}}

{{/* Whether more than one pod may use the storage at a time; "true" or nothing. Only what downloads uses it. */}}
{{- define "triton-chat.sharesStorage" -}}
{{- $triton := .Values.triton -}}
{{- $most := ternary $triton.autoscaling.maxReplicas 0 (ne $triton.autoscaling.type "none") -}}
{{- $pods := ternary 0 1 (eq (toString $triton.strategy.maxSurge | trimSuffix "%") "0") -}}
{{- range $track := include "triton-chat.tracks" . | fromJsonArray -}}
{{- if include "triton-chat.downloads" (dict "root" $ "track" $track) -}}
{{- $pods = add $pods (ternary (max (int $track.replicas) (int $most)) (int $track.replicas) (eq $track.name "stable")) -}}
{{- end -}}
{{- end -}}
{{- if gt (mul $pods $triton.nodes) 1 -}}
true
{{- end -}}
{{- end -}}

{{/* Host of Triton's gRPC for a gateway: (dict "root" $ "suffix" ""). */}}
{{- define "triton-chat.tritonUrl" -}}
{{- $values := .root.Values -}}
{{- $service := printf "%s-triton%s%s" (include "triton-chat.fullname" .root) .suffix (ternary "-headless" "" $values.triton.service.headless) -}}
{{- printf "%s://%s.%s.svc:8001" (ternary "grpcs" "grpc" (not (empty $values.triton.tls.existingSecret))) $service .root.Release.Namespace -}}
{{- end -}}

{{- define "triton-chat.gatewayUrl" -}}
{{- printf "http://%s-gateway.%s.svc:%v" (include "triton-chat.fullname" .) .Release.Namespace .Values.gateway.service.port -}}
{{- end -}}
