{{/* Settings whose values are secret; a test holds the list to the product's. */}}
{{- define "order-relay.secretSettings" -}}
API_TOKEN DATABASE_PASSWORD DATABASE_URL EXTERNAL_LOGGER_HEADERS EXTERNAL_LOGGER_PROXY EXTERNAL_LOGGER_SIGNING_SECRETS EXTERNAL_LOGGER_TOKEN KAFKA_SASL_OAUTH_CLIENT_SECRET KAFKA_SASL_PASSWORD KAFKA_SSL_KEY_PASSWORD
{{- end }}

{{/* What the schema cannot say in plain words. */}}
{{- define "order-relay.refusals" -}}
{{- $root := . -}}
{{- $secret := splitList " " (include "order-relay.secretSettings" . | trim) -}}
{{- $ours := list "ADVERTISED_URL" "CONSUMERS" "DATA_DIR" "WEB_HOST" "WEB_PORT" -}}
{{- $places := dict "settings" (.Values.settings | default dict) -}}
{{- $names := dict -}}
{{- range .Values.consumers -}}
  {{- $context := dict "root" $root "consumer" . -}}
  {{- $_ := set $places (printf "env of consumer %s" .name) (.env | default dict) -}}
  {{- $name := include "order-relay.consumer.name" $context -}}
  {{- if hasKey $names $name -}}
    {{- fail (printf "consumers %s and %s: both would be named %s; each consumer may be listed once" (get $names $name) .name $name) -}}
  {{- end -}}
  {{- $_ := set $names $name .name -}}
  {{- if and (eq $root.Values.state.volume "claim") (gt (int (include "order-relay.consumer.spare" $context)) 0) -}}
    {{- fail (printf "consumer %s: with state.volume=claim, replicas must not exceed partitions: a StatefulSet waits for spare workers, which are never ready" .name) -}}
  {{- end -}}
  {{- if include "order-relay.consumer.scaled" $context -}}
    {{- if gt (int (include "order-relay.consumer.replicas" $context)) (int (.partitions | default 3)) -}}
      {{- fail (printf "consumer %s: with autoscaling, replicas is the minimum and must not exceed partitions" .name) -}}
    {{- end -}}
    {{- if and (ne .name "order_logging") (not (and .autoscaling.topic .autoscaling.group)) -}}
      {{- fail (printf "consumer %s: autoscaling needs autoscaling.topic and autoscaling.group" .name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $place, $settings := $places -}}
  {{- range $name, $value := $settings -}}
    {{- if has $name $secret -}}
      {{- fail (printf "%s.%s is a secret: put it into secrets.%s" $place $name $name) -}}
    {{- end -}}
    {{- if has $name $ours -}}
      {{- fail (printf "%s.%s: the chart sets it itself; see consumers, web.port and state" $place $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $name, $one := .Values.secrets -}}
  {{- if $one -}}
    {{- if not (or $one.existingSecret $one.value) -}}
      {{- fail (printf "secrets.%s: give existingSecret and key, or value" $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if not (or (get (.Values.secrets | default dict) "DATABASE_URL") (get (.Values.secrets | default dict) "DATABASE_PASSWORD")) -}}
  {{- fail "secrets.DATABASE_URL is missing: without a database, saved events would be lost with the pod" -}}
{{- end -}}
{{- end }}
