{{/* Names. One release per cluster, so a release that is called stagecoach gets short ones. */}}
{{- define "stagecoach.name" -}}
{{- if contains "stagecoach" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-stagecoach" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/* Labels of everything; the component is the argument list's second element. */}}
{{- define "stagecoach.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: stagecoach
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* What selectors match: these labels never change between versions. */}}
{{- define "stagecoach.selector" -}}
app.kubernetes.io/name: stagecoach
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image by role: registry, repository, and the digest before the tag. */}}
{{- define "stagecoach.image" -}}
{{- $root := index . 0 -}}{{- $image := index $root.Values.images (index . 1) -}}
{{- $name := $image.repository -}}
{{- with $root.Values.global.imageRegistry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $image.repository }}{{ end -}}
{{- if $image.digest }}{{ printf "%s@%s" $name $image.digest }}{{ else }}{{ printf "%s:%s" $name ($image.tag | default $root.Chart.AppVersion) }}{{ end -}}
{{- end }}

{{/* Where jobs run: a JSON object, because a template returns text. */}}
{{- define "stagecoach.namespaces" -}}
{{- dict "list" (.Values.namespaces | default (list .Release.Namespace)) | toJson -}}
{{- end }}
{{- define "stagecoach.jobNamespace" -}}
{{- .Values.site.namespace | default (first (include "stagecoach.namespaces" . | fromJson).list) -}}
{{- end }}

{{- define "stagecoach.queue" -}}
{{- if .Values.site.queue }}{{ .Values.site.queue }}{{ else if .Values.queues.enabled }}{{ .Values.queues.name }}{{ end -}}
{{- end }}

{{- define "stagecoach.prefectUrl" -}}
{{- if .Values.prefect.server.enabled }}http://{{ include "stagecoach.name" . }}-server.{{ .Release.Namespace }}.svc:4200/api{{ else }}{{ .Values.prefect.externalUrl }}{{ end -}}
{{- end }}
{{- define "stagecoach.authSecret" -}}
{{- .Values.prefect.server.auth.secret | default (printf "%s-prefect-auth" (include "stagecoach.name" .)) -}}
{{- end }}

{{/* Pod Security `restricted`, and a root file system that cannot be written. */}}
{{- define "stagecoach.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "stagecoach.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- define "stagecoach.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment of whatever talks to Prefect, the bucket and the cluster: worker, deployments, tests. */}}
{{- define "stagecoach.controlEnvironment" -}}
- {name: STAGECOACH_SITE, value: /etc/stagecoach/site.toml}
- {name: PREFECT_API_URL, value: {{ include "stagecoach.prefectUrl" . | quote }}}
{{- if .Values.prefect.server.auth.enabled }}
- name: PREFECT_API_AUTH_STRING
  valueFrom: {secretKeyRef: {name: {{ include "stagecoach.authSecret" . | quote }}, key: {{ .Values.prefect.server.auth.key | quote }}}}
{{- end }}
{{ include "stagecoach.bucketEnvironment" . }}
{{- end }}
{{- define "stagecoach.bucketEnvironment" -}}
- {name: AWS_REGION, value: {{ .Values.bucket.region | quote }}}
{{- with .Values.bucket.endpoint }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.site.environment }}
- {name: {{ $name | quote }}, value: {{ $value | quote }}}
{{- end }}
{{- range include "stagecoach.secrets" . | fromJsonArray }}
- name: {{ .variable | quote }}
  valueFrom: {secretKeyRef: {name: {{ .secret | quote }}, key: {{ .key | quote }}}}
{{- end }}
{{- end }}

{{/* References to secrets of jobs and flows: the bucket's, then the site's own. */}}
{{- define "stagecoach.secrets" -}}
{{- $all := list -}}
{{- with .Values.bucket.secret -}}
{{- $all = append $all (dict "variable" "AWS_ACCESS_KEY_ID" "secret" . "key" $.Values.bucket.accessKeyIdKey) -}}
{{- $all = append $all (dict "variable" "AWS_SECRET_ACCESS_KEY" "secret" . "key" $.Values.bucket.secretAccessKeyKey) -}}
{{- end -}}
{{- concat $all .Values.site.secrets | toJson -}}
{{- end }}

{{/* What every pod of ours mounts: the site's settings, and a place to write. */}}
{{- define "stagecoach.volumes" -}}
- name: site
  configMap: {name: {{ include "stagecoach.name" . }}-site}
- name: scratch
  emptyDir: {sizeLimit: 2Gi}
{{- end }}
{{- define "stagecoach.mounts" -}}
- {name: site, mountPath: /etc/stagecoach, readOnly: true}
- {name: scratch, mountPath: /tmp}
{{- end }}
