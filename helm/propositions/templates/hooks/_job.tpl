{{/* With PostgreSQL in the release itself, the first migration comes after it. Failed Jobs stay, to be looked at. */}}
{{- define "propositions.hook" -}}
helm.sh/hook: {{ ternary "post-install,pre-upgrade" "pre-install,pre-upgrade" .release.Values.trial.enabled }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Takes the release, name, weight and command. */}}
{{- define "propositions.hookJob" -}}
{{- $hooks := .release.Values.hooks }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "propositions.fullname" .release }}-{{ .name }}
  labels:
    {{- include "propositions.labels" .release | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  annotations:
    {{- include "propositions.hook" . | nindent 4 }}
spec:
  backoffLimit: {{ $hooks.backoffLimit }}
  activeDeadlineSeconds: {{ $hooks.deadlineSeconds }}
  template:
    metadata:
      labels:
        {{- include "propositions.podLabels" .release | nindent 8 }}
        app.kubernetes.io/component: {{ .name }}
    spec:
      {{- $pod := dict "resources" $hooks.resources "image" (include "propositions.image" .release) "serviceAccount" (printf "%s-hooks" (include "propositions.fullname" .release)) }}
      {{- include "propositions.taskPod" (merge $pod .) | nindent 6 }}
{{- end }}
