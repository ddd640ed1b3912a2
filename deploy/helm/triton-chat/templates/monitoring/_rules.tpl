{{/* The files in files/rules are Prometheus rules, which use braces themselves, so they are not Helm templates. Words in
capitals stand for what depends on the values; runbook_url, namespace and release are added to each alert. */}}

{{/* A rule file with the words filled in. Context: dict "root" $ "text" <file> */}}
{{- define "triton-chat.monitoring.filled" -}}
{{- $rules := .root.Values.monitoring.rules -}}
{{- $name := include "triton-chat.fullname" .root -}}
{{- $words := dict
  "SELECTOR" (printf "namespace=%q, release=%q" .root.Release.Namespace .root.Release.Name)
  "NAMESPACE" .root.Release.Namespace
  "RELEASE" .root.Release.Name
  "FULLNAME" $name
  "COMPONENTS" (ternary "triton|gateway" "triton" .root.Values.gateway.enabled)
  "PATIENCE" (printf "%dm" (div (add (include "triton-chat.loadSeconds" .root | int) 659) 60))
  "ERROR_BUDGET" (divf $rules.errorPercent 100)
  "FIRST_TOKEN_SECONDS" $rules.timeToFirstToken.seconds
  "FIRST_TOKEN_BUDGET" (divf (subf 100 $rules.timeToFirstToken.percent) 100)
  "FIRST_TOKEN_LE" (include "triton-chat.monitoring.boundary" $rules.timeToFirstToken.seconds)
  "OUTPUT_TOKEN_SECONDS" $rules.timePerOutputToken.seconds
  "OUTPUT_TOKEN_BUDGET" (divf (subf 100 $rules.timePerOutputToken.percent) 100)
  "OUTPUT_TOKEN_LE" (include "triton-chat.monitoring.boundary" $rules.timePerOutputToken.seconds)
-}}
{{- $text := .text -}}
{{- range $word, $value := $words -}}
{{- $text = regexReplaceAllLiteral (printf "\\b%s\\b" $word) $text (toString $value) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{/* The label `le` of a boundary: Prometheus 3 has 5.0 where Prometheus 2 has 5. */}}
{{- define "triton-chat.monitoring.boundary" -}}
{{ toString . | replace "." "[.]" }}([.]0)?
{{- end -}}

{{/* Sentences for triton-chat.validate. Seconds must be a bucket boundary of the histogram (chat_engine/service/metrics.py):
slow requests cannot be counted otherwise. */}}
{{- define "triton-chat.validate.monitoring" -}}
{{- $monitoring := .Values.monitoring -}}
{{- if $monitoring.rules.enabled -}}
{{- $boundaries := dict
  "timeToFirstToken" (list 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 30.0 60.0)
  "timePerOutputToken" (list 0.001 0.0025 0.005 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5)
-}}
{{- range $name, $allowed := $boundaries -}}
{{- $objective := get $monitoring.rules $name -}}
{{- if not (has (float64 $objective.seconds) $allowed) }}
- {{ printf "monitoring.rules.%s.seconds is %v, which is not a bucket boundary of the metric; allowed are %s" $name $objective.seconds (join ", " $allowed) | quote }}
{{- end -}}
{{- if lt (float64 $objective.percent) 94.0 }}
- {{ printf "monitoring.rules.%s.percent is %v: the alert fires at 14.4 times the slow requests that it allows, nearly all requests or more; at least 94" $name $objective.percent | quote }}
{{- end -}}
{{- end -}}
{{- if gt (float64 $monitoring.rules.errorPercent) 6.0 }}
- {{ printf "monitoring.rules.errorPercent is %v: the alert fires at 14.4 times as many errors, nearly all requests or more; at most 6" $monitoring.rules.errorPercent | quote }}
{{- end -}}
{{- if eq $monitoring.scrape "none" }}
- "monitoring.rules.enabled is true, but monitoring.scrape is \"none\": the rules select by labels that serviceMonitor and podMonitor add; choose one of them"
{{- end -}}
{{- end -}}
{{- end -}}
