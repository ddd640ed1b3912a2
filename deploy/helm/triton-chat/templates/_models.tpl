{{/* Checkpoints: where they come from, where they are, and what must happen before the engine can load them. */}}

{{/* The models of a track that bring a checkpoint, as JSON: [{name, model}]. Takes (dict "root" $ "track" $track). */}}
{{- define "triton-chat.checkpoints" -}}
{{- $found := list (dict "name" "chat" "model" .track.model) -}}
{{- range .root.Values.extraModels -}}
{{- $found = append $found (dict "name" .name "model" .model) -}}
{{- end -}}
{{- if and .root.Values.embeddings.enabled .root.Values.embeddings.model -}}
{{- $found = append $found (dict "name" "embeddings" "model" .root.Values.embeddings.model) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* A model's name as a part of the name of a container or a volume. */}}
{{- define "triton-chat.objectName" -}}
{{- . | replace "." "-" | replace "_" "-" | lower -}}
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

{{/* The engine's settings of one chat model, as JSON: the values as they are, and what the chart decides. */}}
{{- define "triton-chat.engineConfig" -}}
{{- $decided := dict "model" (include "triton-chat.modelPath" .checkpoint) "drain_seconds" .root.Values.drainSeconds -}}
{{- mustMergeOverwrite (deepCopy (.engine | default dict)) $decided | toPrettyJson -}}
{{- end -}}

{{/* The files of a track's ConfigMap: one of the engine for each chat model, and one of the embedder. */}}
{{- define "triton-chat.configFiles" -}}
{{- $root := .root -}}
chat.json: |
  {{- include "triton-chat.engineConfig" (dict "root" $root "engine" .track.engine "checkpoint" (dict "name" "chat" "model" .track.model)) | nindent 2 }}
{{- range $root.Values.extraModels }}
{{ .name }}.json: |
  {{- include "triton-chat.engineConfig" (dict "root" $root "engine" .engine "checkpoint" .) | nindent 2 }}
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
