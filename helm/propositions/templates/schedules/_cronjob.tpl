{{/* Takes the release, name and the values of the schedule. */}}
{{- define "propositions.cronJobHead" -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ include "propositions.fullname" .release }}-{{ .name }}
  labels:
    {{- include "propositions.labels" .release | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
spec:
  schedule: {{ .values.schedule | quote }}
  timeZone: Etc/UTC
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 600
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: 1
      activeDeadlineSeconds: {{ .values.deadlineSeconds }}
      template:
        metadata:
          labels:
            {{- include "propositions.podLabels" .release | nindent 12 }}
            app.kubernetes.io/component: {{ .name }}
{{- end }}
