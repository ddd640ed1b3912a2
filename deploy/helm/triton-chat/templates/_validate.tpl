{{/* What the schema cannot express: values that contradict each other. All problems are reported at once. */}}
{{- define "triton-chat.validate" -}}
{{- $problems := list -}}
{{- range $check := list "sources" "storage" "ignored" "names" "engine" "vllm" "adapters" "gpus" "nodes" "drain" "replicas" "doors" "gatewaySettings" "monitoring" -}}
{{- $problems = concat $problems (include (printf "triton-chat.validate.%s" $check) $ | fromYamlArray) -}}
{{- end -}}
{{- if $problems -}}
{{- $message := printf "\n\nThese values cannot be used:\n- %s\n" (join "\n- " $problems) -}}
{{- fail $message -}}
{{- /* `helm lint` only logs `fail`; including a template that does not exist is what it reports. */ -}}
{{- include $message . -}}
{{- end -}}
{{- end -}}

{{/* Each check gives a YAML list of sentences. `model` is what is used, `written` what the user wrote of it, and `kind` where
     the kind of source is set. */}}
{{- define "triton-chat.validate.sources" -}}
{{- /* The default names a hub repository, whichever source is chosen. */ -}}
{{- $sources := list (dict "path" "model" "kind" "model.source" "model" .Values.model "written" (omit .Values.model "hub")) -}}
{{- if .Values.canary.enabled -}}
{{- $own := .Values.canary.model -}}
{{- $sources = append $sources (dict "path" "canary.model" "kind" (ternary "canary.model.source" "model.source" (hasKey $own "source")) "model" (include "triton-chat.canaryModel" . | fromJson) "written" $own) -}}
{{- end -}}
{{- range $index, $extra := .Values.extraModels -}}
{{- $path := printf "extraModels[%d].model" $index -}}
{{- $sources = append $sources (dict "path" $path "kind" (printf "%s.source" $path) "model" $extra.model "written" $extra.model) -}}
{{- end -}}
{{- range $place := include "triton-chat.adapterPlaces" . | fromJsonArray -}}
{{- range $name, $source := $place.adapters -}}
{{- $path := printf "%s.%s" $place.path $name -}}
{{- $sources = append $sources (dict "path" $path "kind" (printf "%s.source" $path) "model" $source "written" $source) -}}
{{- end -}}
{{- end -}}
{{- with .Values.embeddings.model -}}
{{- $sources = append $sources (dict "path" "embeddings.model" "kind" "embeddings.model.source" "model" . "written" .) -}}
{{- end -}}
{{- $needed := include "triton-chat.sourceFields" . | fromJson -}}
{{- range $checked := $sources -}}
{{- $source := .model.source | default "" -}}
{{- $field := get $needed $source -}}
{{- if not $source }}
- {{ printf "%s.source is missing: one of hub, s3, pvc, hostPath, image, embedded" .path | quote }}
{{- else if and $field (not (dig $source $field "" .model)) }}
- {{ printf "%s.%s.%s is empty, but %s is %q, which needs it" .path $source $field .kind $source | quote }}
{{- end }}
{{- range $other, $field := $needed -}}
{{- if and $source (ne $other $source) (dig $other $field "" $checked.written) }}
- {{ printf "%s.%s.%s is set, but %s is %q: it would be ignored" $checked.path $other $field $checked.kind $source | quote }}
{{- end }}
{{- end }}
{{- if and (eq $source "image") (semverCompare "<1.31.0-0" $.Capabilities.KubeVersion.Version) }}
- {{ printf "%s is \"image\", which needs Kubernetes 1.31 or later; the cluster runs %s" .kind $.Capabilities.KubeVersion.Version | quote }}
{{- end }}
{{- end -}}
{{- include "triton-chat.validate.canaryRevision" . -}}
{{- end -}}

{{/* A commit belongs to one repository. */}}
{{- define "triton-chat.validate.canaryRevision" -}}
{{- $stable := .Values.model.hub -}}
{{- $own := get .Values.canary.model "hub" | default dict -}}
{{- $pinned := regexMatch "^[0-9a-f]{40}$" ($stable.revision | default "") -}}
{{- if and .Values.canary.enabled $own.id (ne $own.id $stable.id) (not $own.revision) $pinned }}
- {{ printf "canary.model.hub.id is %q, but model.hub.revision is a commit of %q: set canary.model.hub.revision" $own.id $stable.id | quote }}
{{- end -}}
{{- end -}}

{{- define "triton-chat.validate.storage" -}}
{{- with .Values.storage -}}
{{- if and (eq .type "pvc") (not .existingClaim) (ne .accessMode "ReadWriteMany") (include "triton-chat.sharesStorage" $) (include "triton-chat.downloadsAny" $) }}
- {{ printf "storage.accessMode is %q, but several pods would share the claim (triton.replicas, triton.nodes, triton.strategy.maxSurge, triton.autoscaling or canary): set ReadWriteMany, or storage.type=emptyDir" .accessMode | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "triton-chat.validate.ignored" -}}
{{- if and .Values.storage.existingClaim (ne .Values.storage.type "pvc") }}
- {{ printf "storage.existingClaim is set, but storage.type is %q: set storage.type=pvc" .Values.storage.type | quote }}
{{- end }}
{{- if and (not .Values.embeddings.enabled) (or .Values.embeddings.model .Values.embeddings.config) }}
- "embeddings.model or embeddings.config is set, but embeddings.enabled is false"
{{- end }}
{{- end -}}

{{- define "triton-chat.validate.names" -}}
{{- $taken := list "chat" "chat-unary" "embeddings" "embedder" "tokenizer" "vllm-model" -}}
{{- range $index, $extra := .Values.extraModels -}}
{{- $name := include "triton-chat.objectName" $extra.name -}}
{{- if has $name $taken }}
- {{ printf "extraModels[%d].name is %q, which is taken: model names must differ even in lower case and with . and _ read as -" $index $extra.name | quote }}
{{- end -}}
{{- $taken = append $taken $name -}}
{{- end -}}
{{- range $place := include "triton-chat.adapterPlaces" . | fromJsonArray -}}
{{- $names := $taken -}}
{{- range $name, $_ := $place.adapters -}}
{{- $objectName := include "triton-chat.objectName" $name -}}
{{- if not (regexMatch "^[A-Za-z0-9]([-_.:/A-Za-z0-9]{0,126}[A-Za-z0-9])?$" $name) }}
- {{ printf "%s has the name %q: at most 128 letters, digits, - _ . : and /, with a letter or a digit at both ends" $place.path $name | quote }}
{{- else if has $objectName $names }}
- {{ printf "%s.%s has a name which is taken: names of models and adapters must differ even in lower case and with . _ : and / read as -" $place.path $name | quote }}
{{- end -}}
{{- $names = append $names $objectName -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where adapters are written, as JSON: [{path, adapters}]. */}}
{{- define "triton-chat.adapterPlaces" -}}
{{- $places := list (dict "path" "adapters" "adapters" .Values.adapters) -}}
{{- if .Values.canary.enabled -}}
{{- $places = append $places (dict "path" "canary.adapters" "adapters" .Values.canary.adapters) -}}
{{- end -}}
{{- range $index, $extra := .Values.extraModels -}}
{{- $places = append $places (dict "path" (printf "extraModels[%d].adapters" $index) "adapters" ($extra.adapters | default dict)) -}}
{{- end -}}
{{- toJson $places -}}
{{- end -}}


{{- define "triton-chat.validate.engine" -}}
{{- $engines := dict "engine" .Values.engine "canary.engine" .Values.canary.engine -}}
{{- range $index, $extra := .Values.extraModels -}}
{{- $_ := set $engines (printf "extraModels[%d].engine" $index) ($extra.engine | default dict) -}}
{{- end -}}
{{- $homes := dict "model" "model.source" "revision" "model.hub.revision" "device" "triton.gpu.count" "drain_seconds" "drainSeconds" "adapters" "adapters" -}}
{{- $ofVllm := dict "nnodes" "triton.nodes" "node_rank" "triton.nodes" "master_addr" "triton.nodes" -}}
{{- range $path, $engine := $engines -}}
{{- range $key, $home := $ofVllm -}}
{{- if hasKey ($engine.vllm | default dict) $key }}
- {{ printf "%s.vllm.%s is set by the chart: set %s instead" $path $key $home | quote }}
{{- end -}}
{{- end -}}
{{- range $key, $home := $homes -}}
{{- if hasKey $engine $key }}
- {{ printf "%s.%s is set by the chart: set %s instead" $path $key $home | quote }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key := list "model" "device" -}}
{{- if hasKey $.Values.embeddings.config $key }}
- {{ printf "embeddings.config.%s is set by the chart: set %s instead" $key (get (dict "model" "embeddings.model" "device" "triton.gpu.count") $key) | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Each model of each track that is checked once, as JSON: [{track, path, name, engine, adapters}]. */}}
{{- define "triton-chat.everyModel" -}}
{{- $every := list -}}
{{- range $track := include "triton-chat.tracks" . | fromJsonArray -}}
{{- range $model := include "triton-chat.chatModels" (dict "root" $ "track" $track) | fromJsonArray -}}
{{- if or (eq $track.name "stable") (eq $model.name "chat") -}}
{{- $every = append $every (set (omit $model "model") "isVllm" (eq ($model.engine.engine | default "native") "vllm")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $every -}}
{{- end -}}

{{- define "triton-chat.validate.vllm" -}}
{{- range include "triton-chat.everyModel" . | fromJsonArray -}}
{{- if and .engine.vllm (not .isVllm) }}
- {{ printf "%sengine.vllm is set, but %sengine.engine is %q: set %sengine.engine=vllm" .path .path (.engine.engine | default "native") .path | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "triton-chat.validate.adapters" -}}
{{- range include "triton-chat.everyModel" . | fromJsonArray -}}
{{- $enabled := (.engine.vllm | default dict).enable_lora -}}
{{- if and .adapters (not .isVllm) }}
- {{ printf "%sadapters is set, but %sengine.engine is %q, which has none: set %sengine.engine=vllm" .path .path (.engine.engine | default "native") .path | quote }}
{{- else if and .adapters (not $enabled) }}
- {{ printf "%sadapters is set, but %sengine.vllm.enable_lora is not: set it to true" .path .path | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* One model has several GPUs, or several models have one: nothing else says which process computes where. */}}
{{- define "triton-chat.validate.gpus" -}}
{{- $count := int .Values.triton.gpu.count -}}
{{- $nodes := int .Values.triton.nodes -}}
{{- $pods := ternary (printf "triton.gpu.count is %d" $count) (printf "triton.nodes x triton.gpu.count is %d x %d" $nodes $count) (eq $nodes 1) -}}
{{- $given := mul $nodes (max 1 $count) -}}
{{- $everyModel := include "triton-chat.everyModel" . | fromJsonArray -}}
{{- range $everyModel -}}
{{- $processes := include "triton-chat.vllmProcesses" .engine | int -}}
{{- if and (not .isVllm) (or (gt $count 1) (gt $nodes 1)) }}
- {{ printf "%s, but %sengine.engine is %q, which computes on one GPU: set %sengine.engine=vllm and %sengine.vllm.tensor_parallel_size=%d, or triton.gpu.count=1 and triton.nodes=1" $pods .path (.engine.engine | default "native") .path .path $given | quote }}
{{- else if and .isVllm (or $count (gt $nodes 1)) (ne $processes (int $given)) }}
- {{ printf "%s, but %sengine.vllm splits the model over %d (%s): set %ssizes that multiply to %d" $pods .path $processes (join " x " (include "triton-chat.parallelSizes" $ | fromJsonArray)) (ternary (printf "triton.gpu.count=%d, or " $processes) "" (eq $nodes 1)) (int $given) | quote }}
{{- end -}}
{{- $replicas := (.engine.vllm | default dict).data_parallel_size | default 1 | int -}}
{{- if and .isVllm (gt $nodes 1) (gt $replicas 1) }}
- {{ printf "%sengine.vllm.data_parallel_size is %d, but triton.nodes is %d: over several machines, a model is split by tensor and pipeline parallelism alone; for more throughput set triton.replicas" .path $replicas $nodes | quote }}
{{- end -}}
{{- end -}}
{{- if and .Values.extraModels (or (gt $count 1) (gt $nodes 1)) }}
- {{ printf "%s, but extraModels is set: a pod with several GPUs serves one chat model; install the others as releases of their own" $pods | quote }}
{{- end }}
{{- if and (gt $count 1) (contains "/mig-" .Values.triton.gpu.resource) }}
- {{ printf "triton.gpu.count is %d, but triton.gpu.resource is %q: slices of GPUs cannot exchange data; set triton.gpu.count=1, or whole GPUs as nvidia.com/gpu" $count .Values.triton.gpu.resource | quote }}
{{- end }}
{{- if eq $count 1 -}}
{{- range $track := include "triton-chat.tracks" . | fromJsonArray -}}
{{- include "triton-chat.validate.memory" (dict "root" $ "track" $track) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Each vLLM takes its own part of the GPU; the default is that of the engine's memory_fraction. */}}
{{- define "triton-chat.validate.memory" -}}
{{- $sum := 0.0 -}}
{{- $parts := list -}}
{{- range include "triton-chat.chatModels" . | fromJsonArray -}}
{{- if eq (.engine.engine | default "native") "vllm" -}}
{{- $part := .engine.memory_fraction | default 0.9 -}}
{{- $sum = addf $sum $part -}}
{{- $parts = append $parts (printf "%sengine.memory_fraction=%v" .path $part) -}}
{{- end -}}
{{- end -}}
{{- if and (gt (len $parts) 1) (ge $sum 1.0) }}
- {{ printf "%s: each vLLM takes its own part of the GPU that they share; lower them until their sum is below 1" (join " and " $parts) | quote }}
{{- end -}}
{{- end -}}

{{- define "triton-chat.validate.nodes" -}}
{{- if gt (int .Values.triton.nodes) 1 -}}
{{- $longest := ternary 29 36 .Values.canary.enabled -}}
{{- $fullname := include "triton-chat.fullname" . -}}
{{- if gt (len $fullname) $longest }}
- {{ printf "triton.nodes is %v, and the names of the pods of a LeaderWorkerSet get longer than %q allows: set fullnameOverride, of at most %d characters" .Values.triton.nodes $fullname $longest | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "triton-chat.validate.drain" -}}
{{- $shortest := include "triton-chat.shortestGraceSeconds" . | int -}}
{{- $given := .Values.terminationGracePeriodSeconds | int -}}
{{- if and $given (lt $given $shortest) }}
- {{ printf "terminationGracePeriodSeconds is %d, but drainSeconds=%v needs at least %d: increase it, or set 0 to derive it from drainSeconds" $given .Values.drainSeconds $shortest | quote }}
{{- end -}}
{{- end -}}

{{- define "triton-chat.validate.replicas" -}}
{{- with .Values.triton.autoscaling -}}
{{- if and (ne .type "none") (not .waitingRequests) (not .kvCachePercent) }}
- {{ printf "triton.autoscaling.type is %q without a metric: set triton.autoscaling.waitingRequests or triton.autoscaling.kvCachePercent" .type | quote }}
{{- end }}
{{- if and (eq .type "keda") (not .prometheusAddress) }}
- "triton.autoscaling.prometheusAddress is empty, but triton.autoscaling.type is \"keda\", which queries Prometheus"
{{- end }}
{{- if and (ne .type "none") (gt (int .minReplicas) (int .maxReplicas)) }}
- {{ printf "triton.autoscaling.minReplicas is %v, more than triton.autoscaling.maxReplicas, %v" .minReplicas .maxReplicas | quote }}
{{- end }}
{{- end -}}
{{- with .Values.gateway.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
- {{ printf "gateway.autoscaling.minReplicas is %v, more than gateway.autoscaling.maxReplicas, %v" .minReplicas .maxReplicas | quote }}
{{- end }}
{{- end -}}
{{- $strategy := .Values.triton.strategy -}}
{{- if and (eq (toString $strategy.maxSurge | trimSuffix "%") "0") (eq (toString $strategy.maxUnavailable | trimSuffix "%") "0") }}
- "triton.strategy.maxSurge and triton.strategy.maxUnavailable are both 0: a rollout could not replace any pod"
{{- end }}
{{- end -}}

{{- define "triton-chat.validate.doors" -}}
{{- $values := .Values -}}
{{- range $door := list "ingress" "httpRoute" "ui" -}}
{{- if and (get $values $door).enabled (not $values.gateway.enabled) }}
- {{ printf "%s.enabled is true, but gateway.enabled is false: it needs the gateway" $door | quote }}
{{- end -}}
{{- end -}}
{{- range $door := list "httpRoute" "grpcRoute" -}}
{{- with get $values $door -}}
{{- if and .enabled (not .parentRefs) }}
- {{ printf "%s.parentRefs is empty: name the Gateway that serves the route" $door | quote }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $reached := $values.networkPolicy.tritonClients | or (not $values.networkPolicy.enabled) -}}
{{- if and $values.grpcRoute.enabled (not $reached) }}
- "grpcRoute.enabled is true, but networkPolicy.tritonClients is empty, which blocks all its traffic: add the pods of the Gateway"
{{- end }}
{{- if and (ne $values.triton.service.type "ClusterIP") (not $reached) }}
- {{ printf "triton.service.type is %q, but networkPolicy.tritonClients is empty, which blocks all traffic from outside: add the clients" $values.triton.service.type | quote }}
{{- end }}
{{- if and (or $values.ingress.uiHost $values.httpRoute.uiHostnames) (not $values.ui.enabled) }}
- "ingress.uiHost or httpRoute.uiHostnames is set, but ui.enabled is false: there is no page to serve"
{{- end }}
{{- if and $values.canary.enabled $values.canary.weight (not $values.httpRoute.enabled) (not $values.grpcRoute.enabled) }}
- {{ printf "canary.weight is %v, but no route can split the traffic: enable httpRoute or grpcRoute, or set canary.weight=0" $values.canary.weight | quote }}
{{- end }}
{{- end -}}

{{- define "triton-chat.validate.gatewaySettings" -}}
{{- $homes := dict "HOST" "" "PORT" "" "TRITON_URL" "" "DRAIN_TIMEOUT" "drainSeconds" "API_KEYS" "gateway.apiKeys.existingSecret" "API_KEYS_FILE" "gateway.apiKeys.existingSecret" -}}
{{- $known := list "ALIASES" "CORS_ORIGINS" "MAX_BODY_BYTES" "MAX_CHOICES" "MAX_EMBEDDING_INPUTS" "REQUEST_TIMEOUT" "FIRST_TOKEN_TIMEOUT" "TOKEN_TIMEOUT" "MAX_QUEUE_SECONDS" "KEEP_ALIVE" "RETRY_AFTER" "HEAD_TIMEOUT" "BODY_TIMEOUT" "IDLE_TIMEOUT" "SLOW_READER_SECONDS" "MAX_CONNECTIONS" "MAX_CONNECTIONS_PER_ADDRESS" "UNKNOWN_FIELDS" "LOG_LEVEL" "OTLP_ENDPOINT" -}}
{{- range $name, $_ := .Values.gateway.settings -}}
{{- if hasKey $homes $name }}
- {{ printf "gateway.settings.%s is set by the chart%s" $name (ternary (printf ": set %s instead" (get $homes $name)) "" (ne (get $homes $name) "")) | quote }}
{{- else if not (has $name $known) }}
- {{ printf "gateway.settings.%s is not a setting of the gateway; its settings are %s" $name (join ", " $known) | quote }}
{{- end -}}
{{- end -}}
{{- end -}}
