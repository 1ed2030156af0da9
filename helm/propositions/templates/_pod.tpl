{{/* What all pods of a release have in common. They need no API of Kubernetes. */}}
{{- define "propositions.podDefaults" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The user of the image (see Dockerfile). Takes a numeric id. */}}
{{- define "propositions.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "propositions.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Takes values with nodeSelector, tolerations, affinity and priorityClassName. */}}
{{- define "propositions.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes the release and its component. Pods that cannot be spread are better than none. */}}
{{- define "propositions.spread" -}}
{{- $labels := printf "%s\napp.kubernetes.io/component: %s" (include "propositions.selector" .release) .component }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- $labels | nindent 6 }}
{{- end }}
{{- end }}

{{- define "propositions.secretKey" -}}
valueFrom:
  secretKeyRef:
    name: {{ .name }}
    key: {{ .key }}
{{- end }}

{{/* A number as it stands in values: Helm's own printing turns 4194304 into 4.194304e+06. */}}
{{- define "propositions.text" -}}
{{- kindIs "string" . | ternary . (toJson .) | quote }}
{{- end }}

{{/* Settings that all processes of a release share. */}}
{{- define "propositions.settings" -}}
- name: DATABASE_URL
  {{- include "propositions.secretKey" .Values.database.secret | nindent 2 }}
- name: REDIS_URL
  {{- include "propositions.secretKey" .Values.redis.secret | nindent 2 }}
- name: REDIS_CLUSTER
  value: {{ .Values.redis.cluster | quote }}
{{- with .Values.redis.sentinels }}
- name: REDIS_SENTINELS
  value: {{ . | quote }}
{{- end }}
{{- if .Values.redis.sentinelSecret.name }}
- name: REDIS_SENTINEL_PASSWORD
  {{- include "propositions.secretKey" .Values.redis.sentinelSecret | nindent 2 }}
{{- end }}
{{- if .Values.kafka.enabled }}
- name: KAFKA_BOOTSTRAP_SERVERS
  value: {{ required "kafka.bootstrapServers: name the brokers, or switch kafka.enabled off" .Values.kafka.bootstrapServers | quote }}
{{- if .Values.kafka.optionsSecret.name }}
- name: KAFKA_OPTIONS
  {{- include "propositions.secretKey" .Values.kafka.optionsSecret | nindent 2 }}
{{- end }}
{{- end }}
- name: DATA_DIR
  value: /var/lib/propositions
- name: TMPDIR
  value: /tmp
- name: HOME
  value: /tmp
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ include "propositions.text" $value }}
{{- end }}
{{- range $name, $secret := .Values.secretSettings }}
- name: {{ $name }}
  {{- include "propositions.secretKey" $secret | nindent 2 }}
{{- end }}
{{- end }}

{{- define "propositions.mounts" -}}
- name: data
  mountPath: /var/lib/propositions
- name: temporary
  mountPath: /tmp
{{- if .Values.certificates.secretName }}
- name: certificates
  mountPath: /etc/propositions/certificates
  readOnly: true
{{- end }}
{{- end }}

{{/* Without `data`, which is a volume of its own for some. */}}
{{- define "propositions.volumes" -}}
- name: temporary
  emptyDir:
    sizeLimit: 1Gi
{{- if .Values.certificates.secretName }}
- name: certificates
  secret:
    secretName: {{ .Values.certificates.secretName }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "propositions.modelVolume" -}}
- name: models
  {{- with include "propositions.modelClaim" . }}
  persistentVolumeClaim:
    claimName: {{ . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.models.claim.size }}
  {{- end }}
{{- end }}

{{/* Takes the release, the container's name and its command: a copy between /models and the object store. */}}
{{- define "propositions.modelCopy" -}}
{{- if not .command }}
{{- fail (printf "models.objectStore: give the command to %s" .name) }}
{{- end }}
- name: {{ .name }}
  image: {{ required "models.objectStore.image: name an image with a client of the store" .release.Values.models.objectStore.image }}
  imagePullPolicy: {{ .release.Values.image.pullPolicy }}
  command:
    {{- toYaml .command | nindent 4 }}
  env:
    - name: HOME
      value: /tmp
  {{- with .release.Values.models.objectStore.secretName }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  securityContext:
    {{- include "propositions.containerSecurity" . | nindent 4 }}
  resources:
    {{- toYaml .release.Values.models.objectStore.resources | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: temporary
      mountPath: /tmp
{{- end }}

{{/* Takes what `propositions.taskPod` takes. */}}
{{- define "propositions.taskContainer" -}}
- name: {{ .name }}
  image: {{ .image }}
  imagePullPolicy: {{ .release.Values.image.pullPolicy }}
  command:
    {{- toYaml .command | nindent 4 }}
  env:
    {{- include "propositions.settings" .release | nindent 4 }}
  securityContext:
    {{- include "propositions.containerSecurity" .release | nindent 4 }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  volumeMounts:
    {{- include "propositions.mounts" .release | nindent 4 }}
{{- end }}

{{/* Pod of a command that ends. Takes the release, name, image, command, resources. */}}
{{- define "propositions.taskPod" -}}
{{- include "propositions.podDefaults" .release }}
serviceAccountName: {{ default (include "propositions.serviceAccountName" .release) .serviceAccount }}
restartPolicy: Never
securityContext:
  {{- include "propositions.podSecurity" 10001 | nindent 2 }}
containers:
  {{- include "propositions.taskContainer" . | nindent 2 }}
volumes:
  - name: data
    emptyDir:
      sizeLimit: 1Gi
  {{- include "propositions.volumes" .release | nindent 2 }}
{{- end }}

{{/* One more of a task container's mounts. */}}
{{- define "propositions.modelMount" }}
  - name: models
    mountPath: /var/lib/propositions/models
{{- end }}
