{{/* Checkpoints: where they come from, where they are, and what must happen before the engine can load them. */}}

{{/* The checkpoints of a track, as JSON: [{name, model}], those of adapters too. Takes (dict "root" $ "track" $track). */}}
{{- define "triton-chat.checkpoints" -}}
{{- $found := list -}}
{{- range include "triton-chat.chatModels" . | fromJsonArray -}}
{{- $found = append $found (dict "name" .name "model" .model) -}}
{{- $found = concat $found (include "triton-chat.adapters" . | fromJsonArray) -}}
{{- end -}}
{{- if and .root.Values.embeddings.enabled .root.Values.embeddings.model -}}
{{- $found = append $found (dict "name" "embeddings" "model" .root.Values.embeddings.model) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The chat models of a track, as JSON: [{path, name, model, engine, adapters}], with the path of the values. */}}
{{- define "triton-chat.chatModels" -}}
{{- $models := list (dict "path" .track.path "name" "chat" "model" .track.model "engine" .track.engine "adapters" .track.adapters) -}}
{{- range $index, $extra := .root.Values.extraModels -}}
{{- $models = append $models (dict
  "path" (printf "extraModels[%d]." $index) "name" $extra.name "model" $extra.model
  "engine" ($extra.engine | default dict) "adapters" ($extra.adapters | default dict)
) -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/* The checkpoints of the adapters of a chat model, as JSON: [{name, adapter, model}]. */}}
{{- define "triton-chat.adapters" -}}
{{- $prefix := ternary "" (printf "%s-" .name) (eq .name "chat") -}}
{{- $found := list -}}
{{- range $name, $source := .adapters -}}
{{- $found = append $found (dict "name" (printf "%sadapter-%s" $prefix (include "triton-chat.objectName" $name)) "adapter" $name "model" $source) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Whether an engine of a track is vLLM; "true" or nothing. */}}
{{- define "triton-chat.usesVllm" -}}
{{- range include "triton-chat.chatModels" . | fromJsonArray -}}
{{- if eq (.engine.engine | default "native") "vllm" -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "triton-chat.usesVllmAnywhere" -}}
{{- range $track := include "triton-chat.tracks" . | fromJsonArray -}}
{{- include "triton-chat.usesVllm" (dict "root" $ "track" $track) -}}
{{- end -}}
{{- end -}}

{{/* In how many processes vLLM splits a model: the product of the sizes in the block `vllm` of its engine. */}}
{{- define "triton-chat.vllmProcesses" -}}
{{- $product := 1 -}}
{{- $block := .vllm | default dict -}}
{{- range include "triton-chat.parallelSizes" . | fromJsonArray -}}
{{- $product = mul $product (max 1 (get $block . | default 1 | int)) -}}
{{- end -}}
{{- $product -}}
{{- end -}}

{{- define "triton-chat.parallelSizes" -}}
["tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size", "data_parallel_size"]
{{- end -}}

{{/* Seconds that loading may take. vLLM compiles, records graphs and, over several machines, waits for all of them. */}}
{{- define "triton-chat.loadSeconds" -}}
{{- $derived := 900 -}}
{{- if include "triton-chat.usesVllmAnywhere" . -}}
{{- $derived = ternary 3600 1800 (gt (int .Values.triton.nodes) 1) -}}
{{- end -}}
{{- .Values.triton.loadSeconds | int | default $derived -}}
{{- end -}}

{{/* 1Gi for Triton; vLLM's processes and NCCL's rings take up to 1Gi for each GPU. */}}
{{- define "triton-chat.shmSize" -}}
{{- $derived := 1 -}}
{{- if include "triton-chat.usesVllm" . -}}
{{- $derived = add 1 (max 1 (int .root.Values.triton.gpu.count)) -}}
{{- end -}}
{{- .root.Values.triton.shmSize | default (printf "%dGi" (int $derived)) -}}
{{- end -}}

{{/* The name of a model or an adapter as a part of the name of a container or a volume. */}}
{{- define "triton-chat.objectName" -}}
{{- $name := regexReplaceAll "[._:/]" . "-" | lower -}}
{{- if gt (len $name) 50 -}}
{{- $name = printf "%s-%s" (trunc 41 $name | trimSuffix "-") (sha256sum . | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "triton-chat.isDownloaded" -}}
{{- if has .model.source (list "hub" "s3") -}}true{{- end -}}
{{- end -}}

{{/* Whether any checkpoint of a track is downloaded; "true" or nothing. */}}
{{- define "triton-chat.downloads" -}}
{{- range (include "triton-chat.checkpoints" . | fromJsonArray) -}}
{{- if include "triton-chat.isDownloaded" . -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The folder of a checkpoint. One that is downloaded has a folder of its own for each source and revision, so that an
     upgrade, a rollback or a canary never touches files that another pod has open. */}}
{{- define "triton-chat.modelPath" -}}
{{- if include "triton-chat.isDownloaded" . -}}
{{- $what := omit (get .model .model.source) "tokenSecret" "credentialsSecret" "endpoint" -}}
{{- printf "/models/%s-%s" .name (printf "%s %s" .model.source (toJson $what) | sha256sum | trunc 10) -}}
{{- else if eq .model.source "embedded" -}}
/opt/triton-chat/models/tiny-chat
{{- else if eq .model.source "image" -}}
{{- printf "/checkpoints/%s/%s" .name (.model.image.subPath | default "" | trimAll "/") | trimSuffix "/" -}}
{{- else -}}
{{- printf "/checkpoints/%s" .name -}}
{{- end -}}
{{- end -}}

{{/* The volume of one checkpoint that is mounted. */}}
{{- define "triton-chat.checkpointVolume" -}}
- name: checkpoint-{{ include "triton-chat.objectName" .name }}
  {{- if eq .model.source "pvc" }}
  persistentVolumeClaim: {claimName: {{ .model.pvc.claimName }}, readOnly: true}
  {{- else if eq .model.source "hostPath" }}
  hostPath: {path: {{ .model.hostPath.path | quote }}, type: Directory}
  {{- else }}
  image:
    reference: {{ .model.image.reference | quote }}
    pullPolicy: {{ .model.image.pullPolicy | default "IfNotPresent" }}
  {{- end }}
{{- end -}}

{{- define "triton-chat.checkpointMount" -}}
- name: checkpoint-{{ include "triton-chat.objectName" .name }}
  mountPath: /checkpoints/{{ .name }}
  {{- if eq .model.source "pvc" }}
  {{- with .model.pvc.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  {{- end }}
  readOnly: true
{{- end -}}

{{/* The init container that downloads one checkpoint: (dict "root" $ "track" $track "checkpoint" $checkpoint). */}}
{{- define "triton-chat.fetchContainer" -}}
{{- $hub := .checkpoint.model.hub | default dict -}}
{{- $s3 := .checkpoint.model.s3 | default dict -}}
- name: fetch-{{ include "triton-chat.objectName" .checkpoint.name }}
  image: {{ include "triton-chat.image" (dict "root" .root "image" .track.image) | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - fetch
    - {{ .checkpoint.model.source }}
    {{- if eq .checkpoint.model.source "hub" }}
    - {{ printf "--id=%s" $hub.id | quote }}
    - {{ printf "--revision=%s" ($hub.revision | default "main") | quote }}
    {{- with $hub.endpoint }}
    - {{ printf "--endpoint=%s" . | quote }}
    {{- end }}
    {{- if $hub.convert }}
    - --convert
    {{- end }}
    {{- else }}
    - {{ printf "--uri=%s" $s3.uri | quote }}
    {{- with $s3.endpoint }}
    - {{ printf "--endpoint=%s" . | quote }}
    {{- end }}
    {{- with $s3.region }}
    - {{ printf "--region=%s" . | quote }}
    {{- end }}
    {{- end }}
    {{- if .checkpoint.adapter }}
    - --adapter
    {{- end }}
    - {{ printf "--target=%s" (include "triton-chat.modelPath" .checkpoint) | quote }}
  {{- $token := and (eq .checkpoint.model.source "hub") $hub.tokenSecret | default dict }}
  {{- if or $token.name .root.Values.triton.extraEnv }}
  env:
    {{- if $token.name }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ $token.name }}, key: {{ $token.key | default "token" }}}}
    {{- end }}
    {{- with .root.Values.triton.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- if and (eq .checkpoint.model.source "s3") $s3.credentialsSecret }}
  envFrom:
    - secretRef: {name: {{ $s3.credentialsSecret }}}
  {{- end }}
  resources:
    {{- toYaml .root.Values.triton.resources | nindent 4 }}
  {{- include "triton-chat.containerSecurity" .root | nindent 2 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
    {{- with .root.Values.triton.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The engine's settings of one chat model, as JSON: the values as they are, and what the chart decides.
     Takes (dict "root" $ "chat" $model), of chatModels. */}}
{{- define "triton-chat.engineConfig" -}}
{{- $decided := dict "model" (include "triton-chat.modelPath" .chat) "drain_seconds" .root.Values.drainSeconds -}}
{{- if .chat.adapters -}}
{{- $folders := dict -}}
{{- range include "triton-chat.adapters" .chat | fromJsonArray -}}
{{- $_ := set $folders .adapter (include "triton-chat.modelPath" .) -}}
{{- end -}}
{{- $_ := set $decided "adapters" $folders -}}
{{- end -}}
{{- if gt (int .root.Values.triton.nodes) 1 -}}
{{- $_ := set $decided "vllm" (dict "nnodes" (int .root.Values.triton.nodes)) -}}
{{- end -}}
{{- mustMergeOverwrite (deepCopy .chat.engine) $decided | toPrettyJson -}}
{{- end -}}

{{/* The files of a track's ConfigMap: one of the engine for each chat model, and one of the embedder. */}}
{{- define "triton-chat.configFiles" -}}
{{- include "triton-chat.configFileLines" . | trim -}}
{{- end -}}

{{- define "triton-chat.configFileLines" -}}
{{- $root := .root -}}
{{- range include "triton-chat.chatModels" . | fromJsonArray }}
{{ .name }}.json: |
  {{- include "triton-chat.engineConfig" (dict "root" $root "chat" .) | nindent 2 }}
{{- end }}
{{- if include "triton-chat.configuresEmbedder" $root }}
embedder.json: |
  {{- $path := dict "model" "/opt/triton-chat/models/tiny-chat" }}
  {{- with $root.Values.embeddings.model }}
  {{- $path = dict "model" (include "triton-chat.modelPath" (dict "name" "embeddings" "model" .)) }}
  {{- end }}
  {{- mustMergeOverwrite (deepCopy $root.Values.embeddings.config) $path | toPrettyJson | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "triton-chat.configuresEmbedder" -}}
{{- if and .Values.embeddings.enabled (or .Values.embeddings.model .Values.embeddings.config) -}}true{{- end -}}
{{- end -}}

{{- define "triton-chat.downloadsAny" -}}
{{- range $track := include "triton-chat.tracks" . | fromJsonArray -}}
{{- include "triton-chat.downloads" (dict "root" $ "track" $track) -}}
{{- end -}}
{{- end -}}

{{/* The resources of the values, the GPU, and the disk that an emptyDir of checkpoints takes, so that the scheduler and the
     kubelet know of it. */}}
{{- define "triton-chat.tritonResources" -}}
{{- $resources := deepCopy .values.triton.resources -}}
{{- with .values.triton.gpu -}}
{{- if .count -}}
{{- $resources = mustMergeOverwrite $resources (dict "limits" (dict .resource .count)) -}}
{{- end -}}
{{- end -}}
{{- if and .downloads (eq .values.storage.type "emptyDir") -}}
{{- $resources = mustMerge $resources (dict "requests" (dict "ephemeral-storage" .values.storage.size)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
