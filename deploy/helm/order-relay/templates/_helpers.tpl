{{- define "order-relay.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "order-relay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "order-relay.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "order-relay.selector" -}}
app.kubernetes.io/name: {{ include "order-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "order-relay.labels" -}}
{{ include "order-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "order-relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "order-relay.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* A value as text. Whole numbers of a values file are floats: 12000000 and not 1.2e+07. */}}
{{- define "order-relay.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ printf "%.0f" . }}{{- else -}}{{ toString . }}{{- end -}}
{{- end }}

{{/* The Secret of the values that are given in secrets. */}}
{{- define "order-relay.ownSecret" -}}
{{- printf "%s-values" (include "order-relay.fullname" .) -}}
{{- end }}

{{- define "order-relay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Names below are called with (dict "root" $ "consumer" one). */}}

{{- define "order-relay.consumer.name" -}}
{{- $short := .consumer.name | replace "_" "-" | trimSuffix "-" -}}
{{- printf "%s-%s" (include "order-relay.fullname" .root) $short | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "order-relay.consumer.selector" -}}
{{ include "order-relay.selector" .root }}
app.kubernetes.io/component: {{ .consumer.name }}
{{- end }}

{{- define "order-relay.consumer.labels" -}}
{{ include "order-relay.labels" .root }}
app.kubernetes.io/component: {{ .consumer.name }}
{{- end }}

{{- define "order-relay.consumer.kind" -}}
{{- if eq .root.Values.state.volume "claim" -}}StatefulSet{{- else -}}Deployment{{- end -}}
{{- end }}

{{/* Settings as the consumer's workers see them: its own before those of all. As JSON. */}}
{{- define "order-relay.consumer.settings" -}}
{{- merge (dict) (.consumer.env | default dict) (.root.Values.settings | default dict) | toJson -}}
{{- end }}

{{/* The worker's own deadlines take SHUTDOWN_GRACE_SECONDS + 30 s (docs/how-to/operations.md). */}}
{{- define "order-relay.consumer.graceSeconds" -}}
{{- $settings := include "order-relay.consumer.settings" . | fromJson -}}
{{- add (ceil (float64 ($settings.SHUTDOWN_GRACE_SECONDS | default 30))) 30 -}}
{{- end }}

{{- define "order-relay.consumer.scaled" -}}
{{- if (.consumer.autoscaling | default dict).enabled -}}true{{- end -}}
{{- end }}

{{- define "order-relay.consumer.replicas" -}}
{{- if hasKey .consumer "replicas" -}}{{ .consumer.replicas }}{{- else -}}1{{- end -}}
{{- end }}

{{/* Replicas beyond the partitions. They are never ready. */}}
{{- define "order-relay.consumer.spare" -}}
{{- if include "order-relay.consumer.scaled" . -}}0{{- else -}}
{{- max 0 (sub (int (include "order-relay.consumer.replicas" .)) (int (.consumer.partitions | default 3))) -}}
{{- end -}}
{{- end }}
