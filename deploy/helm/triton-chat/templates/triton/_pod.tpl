{{/* The pods that compute: all take (dict "root" $ "track" $track). */}}

{{/* The workload of a track. A LeaderWorkerSet makes a Service of its own name, which must be free. */}}
{{- define "triton-chat.tritonName" -}}
{{- printf "%s-triton%s%s" (include "triton-chat.fullname" .root) (ternary "-nodes" "" (gt (int .root.Values.triton.nodes) 1)) .track.suffix -}}
{{- end -}}

{{/* The pod that serves; over several machines, the leader. */}}
{{- define "triton-chat.tritonPod" -}}
{{- $root := .root -}}
{{- $values := .root.Values.triton -}}
metadata:
  {{- include "triton-chat.tritonPodMetadata" (merge (dict "component" "triton") .) | nindent 2 }}
spec:
  {{- include "triton-chat.tritonPodSpec" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "triton-chat.graceSeconds" $root }}
  {{- include "triton-chat.tritonInitContainers" . | nindent 2 }}
  containers:
    - name: triton
      image: {{ include "triton-chat.image" (dict "root" $root "image" .track.image) | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - serve
        - --device={{ ternary "gpu" "cpu" (gt (int $values.gpu.count) 0) }}
        {{- if not $root.Values.embeddings.enabled }}
        - --no-embeddings
        {{- end }}
        - --exit-timeout-secs={{ include "triton-chat.exitTimeoutSeconds" $root }}
        # Connections end after this time, running streams complete: a client then looks up which pods there are.
        - --grpc-max-connection-age=10000
        {{- if $values.tls.existingSecret }}
        - --grpc-use-ssl=1
        - --grpc-server-cert=/etc/triton-chat/tls/tls.crt
        - --grpc-server-key=/etc/triton-chat/tls/tls.key
        - --grpc-root-cert=/etc/triton-chat/tls/ca.crt
        {{- end }}
        {{- range $values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      env:
        - {name: TRITON_CHAT_ENGINE_CONFIG, value: /etc/triton-chat/engine}
        {{- if include "triton-chat.configuresEmbedder" $root }}
        - {name: TRITON_CHAT_EMBEDDINGS_CONFIG, value: /etc/triton-chat/embeddings/embedder.json}
        {{- end }}
        # tritonserver's HTTP and metrics take one family: that of the address which probes, services and scrapers use.
        - {name: TRITON_CHAT_POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        {{- include "triton-chat.engineEnv" . | nindent 8 }}
      ports:
        - {name: http, containerPort: 8000}
        - {name: grpc, containerPort: 8001}
        - {name: metrics, containerPort: 8002}
      startupProbe:
        httpGet: {path: /v2/health/ready, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ max 1 (ceil (divf (include "triton-chat.loadSeconds" $root) 10)) | int }}
      # Triton calls a model ready whose process is dead or stopped; this sees its heartbeats too. Silence, two periods and
      # one answer together: out of the Service within 10 seconds.
      readinessProbe:
        exec:
          command: [triton-chat-server, probe, ready, --silent-seconds=3]
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 2
      # For what the server itself did not notice and end. What is dead has nothing to drain: preStop, then the end.
      livenessProbe:
        exec:
          command: [triton-chat-server, probe, live, {{ printf "--stall-seconds=%v" $values.stallSeconds | quote }}]
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
        terminationGracePeriodSeconds: {{ include "triton-chat.deadGraceSeconds" $root }}
      {{- include "triton-chat.preStop" $root | nindent 6 }}
      {{- include "triton-chat.engineContainer" . | nindent 6 }}
      volumeMounts:
        - {name: engine, mountPath: /etc/triton-chat/engine, readOnly: true}
        {{- if include "triton-chat.configuresEmbedder" $root }}
        - {name: embedder, mountPath: /etc/triton-chat/embeddings, readOnly: true}
        {{- end }}
        {{- if $values.tls.existingSecret }}
        - {name: tls, mountPath: /etc/triton-chat/tls, readOnly: true}
        {{- end }}
        {{- include "triton-chat.engineMounts" . | nindent 8 }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "triton-chat.settingsVolume" . | nindent 4 }}
    {{- if include "triton-chat.configuresEmbedder" $root }}
    - name: embedder
      configMap:
        name: {{ include "triton-chat.fullname" $root }}-engine{{ .track.suffix }}
        items: [{key: embedder.json, path: embedder.json}]
    {{- end }}
    {{- with $values.tls.existingSecret }}
    - name: tls
      secret: {secretName: {{ . }}}
    {{- end }}
    {{- include "triton-chat.engineVolumes" . | nindent 4 }}
{{- end -}}

{{/* A pod that computes for its leader. It ends itself when a process of its own or its leader has ended, so it has no
     probes, and on SIGTERM it stays until its leader has drained. A component of its own: no Service leads to it. */}}
{{- define "triton-chat.workerPod" -}}
{{- $root := .root -}}
metadata:
  {{- include "triton-chat.tritonPodMetadata" (merge (dict "component" "triton-worker") .) | nindent 2 }}
spec:
  {{- include "triton-chat.tritonPodSpec" . | nindent 2 }}
  # Longer than the leader's.
  terminationGracePeriodSeconds: {{ add (include "triton-chat.graceSeconds" $root | int) 10 }}
  {{- include "triton-chat.tritonInitContainers" . | nindent 2 }}
  containers:
    - name: triton-worker
      image: {{ include "triton-chat.image" (dict "root" $root "image" .track.image) | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      # Which leader and which worker: LeaderWorkerSet sets LWS_LEADER_ADDRESS and LWS_WORKER_INDEX.
      args: [join]
      env:
        - {name: TRITON_CHAT_ENGINE_CONFIG, value: /etc/triton-chat/engine}
        {{- include "triton-chat.engineEnv" . | nindent 8 }}
      {{- include "triton-chat.engineContainer" . | nindent 6 }}
      volumeMounts:
        - {name: engine, mountPath: /etc/triton-chat/engine, readOnly: true}
        {{- include "triton-chat.engineMounts" . | nindent 8 }}
  volumes:
    {{- include "triton-chat.settingsVolume" . | nindent 4 }}
    {{- include "triton-chat.engineVolumes" . | nindent 4 }}
{{- end -}}

{{/* Takes "component" too. */}}
{{- define "triton-chat.tritonPodMetadata" -}}
{{- $values := .root.Values.triton -}}
labels:
  {{- include "triton-chat.podLabels" (dict "root" .root "component" .component "track" .track.name) | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "triton-chat.configFiles" . | sha256sum }}
  kubectl.kubernetes.io/default-container: {{ .component }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "triton-chat.tritonPodSpec" -}}
{{- include "triton-chat.podSecurity" .root }}
{{- with include "triton-chat.scheduling" .root.Values.triton | trim }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "triton-chat.tritonInitContainers" -}}
{{- $here := . -}}
{{- $extra := .root.Values.triton.extraInitContainers -}}
{{- if or (include "triton-chat.downloads" .) $extra -}}
initContainers:
  {{- range include "triton-chat.checkpoints" . | fromJsonArray }}
  {{- if include "triton-chat.isDownloaded" . }}
  {{- include "triton-chat.fetchContainer" (merge (dict "checkpoint" .) $here) | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with $extra }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* What an engine needs of its environment, beside its settings, wherever it computes. */}}
{{- define "triton-chat.engineEnv" -}}
# Everything is there already; nothing is to be fetched while it serves.
- {name: HF_HUB_OFFLINE, value: "1"}
{{- if include "triton-chat.usesVllm" . }}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
# By which its processes reach each other.
- {name: VLLM_HOST_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
# What it compiles; the root file system is read-only.
- {name: VLLM_CACHE_ROOT, value: /cache/vllm}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/inductor}
- {name: TRITON_CACHE_DIR, value: /cache/triton}
- {name: XDG_CACHE_HOME, value: /cache}
{{- end }}
{{- with .root.Values.triton.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "triton-chat.engineContainer" -}}
resources:
  {{- include "triton-chat.tritonResources" (dict "values" .root.Values "downloads" (include "triton-chat.downloads" .)) | nindent 2 }}
{{ include "triton-chat.containerSecurity" .root }}
{{- end -}}

{{- define "triton-chat.engineMounts" -}}
{{- if include "triton-chat.downloads" . }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- range include "triton-chat.checkpoints" . | fromJsonArray }}
{{- if has .model.source (list "pvc" "hostPath" "image") }}
{{ include "triton-chat.checkpointMount" . }}
{{- end }}
{{- end }}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- if include "triton-chat.usesVllm" . }}
- {name: cache, mountPath: /cache}
{{- end }}
{{- with .root.Values.triton.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "triton-chat.settingsVolume" -}}
- name: engine
  configMap:
    name: {{ include "triton-chat.fullname" .root }}-engine{{ .track.suffix }}
    items:
      - {key: chat.json, path: chat.json}
      {{- range .root.Values.extraModels }}
      - {key: {{ .name }}.json, path: {{ .name }}.json}
      {{- end }}
{{- end -}}

{{- define "triton-chat.engineVolumes" -}}
{{- $root := .root -}}
{{- if include "triton-chat.downloads" . }}
- name: models
  {{- if eq $root.Values.storage.type "pvc" }}
  persistentVolumeClaim:
    claimName: {{ $root.Values.storage.existingClaim | default (printf "%s-models" (include "triton-chat.fullname" $root)) }}
  {{- else }}
  emptyDir: {sizeLimit: {{ $root.Values.storage.size }}}
  {{- end }}
{{- end }}
{{- range include "triton-chat.checkpoints" . | fromJsonArray }}
{{- if has .model.source (list "pvc" "hostPath" "image") }}
{{ include "triton-chat.checkpointVolume" . }}
{{- end }}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
# Processes pass tensors to each other through it.
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ include "triton-chat.shmSize" . }}}
{{- if include "triton-chat.usesVllm" . }}
- name: cache
  emptyDir: {sizeLimit: 8Gi}
{{- end }}
{{- with $root.Values.triton.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
