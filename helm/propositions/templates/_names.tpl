{{- define "propositions.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Room is left for the longest suffix of an object, and the numbers that CronJobs and StatefulSets add. */}}
{{- define "propositions.fullname" -}}
{{- $name := include "propositions.name" . }}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $both .Values.fullnameOverride | trunc 36 | trimSuffix "-" }}
{{- end }}

{{- define "propositions.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "propositions.podLabels" . }}
{{- end }}

{{/* Nothing that changes with the chart alone: it would replace all pods. */}}
{{- define "propositions.podLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ include "propositions.name" . }}
{{ include "propositions.selector" . }}
{{- end }}

{{- define "propositions.selector" -}}
app.kubernetes.io/name: {{ include "propositions.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "propositions.serviceAccountName" -}}
{{- default (include "propositions.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{/* Takes what values.image is, and the tag that counts if it has none. */}}
{{- define "propositions.imageName" -}}
{{- $tag := default .tag .image.tag }}
{{- .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "propositions.image" -}}
{{- include "propositions.imageName" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end }}

{{/* Models are promoted by what has the extra `training`. */}}
{{- define "propositions.trainingImage" -}}
{{- $tag := printf "%s-training" (default .Chart.AppVersion .Values.image.tag) }}
{{- $image := merge (dict "repository" (default .Values.image.repository .Values.retrain.image.repository)) .Values.retrain.image }}
{{- include "propositions.imageName" (dict "image" $image "tag" $tag) }}
{{- end }}

{{- define "propositions.modelClaim" -}}
{{- if .Values.models.existingClaim }}{{ .Values.models.existingClaim }}
{{- else if .Values.models.claim.create }}{{ include "propositions.fullname" . }}-models
{{- end }}
{{- end }}
