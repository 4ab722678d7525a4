{{/*
Names, labels, images, and what is worked out from the values once: tenants with their defaults, listeners with their
uids and ports.
*/}}

{{- define "pyttpd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters, so that what is appended (-metrics, -test-refuses) stays a valid name. */}}
{{- define "pyttpd.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "pyttpd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pyttpd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: tree
{{- end }}

{{- define "pyttpd.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: pyttpd
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pyttpd.labels" -}}
{{ include "pyttpd.selectorLabels" . }}
{{ include "pyttpd.commonLabels" . }}
{{- end }}

{{- define "pyttpd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "pyttpd.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The image of a role: dict "root" $ "role" "listener". */}}
{{- define "pyttpd.image" -}}
{{- $image := .root.Values.image }}
{{- $name := printf "%s%s" $image.prefix .role }}
{{- if $image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" $image.registry) $name }}{{ end }}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $image.tag) }}
{{- end }}

{{/* A tenant's image: its own, or the one that serves files and what its volumes hold: dict "root" $ "tenant" $tenant. */}}
{{- define "pyttpd.tenantImage" -}}
{{- $own := default dict .tenant.image }}
{{- if not $own.repository }}
{{- include "pyttpd.image" (dict "root" .root "role" "vhost") }}
{{- else }}
{{- $name := $own.repository }}
{{- $registry := default .root.Values.image.registry $own.registry }}
{{- if $registry }}{{ $name = printf "%s/%s" (trimSuffix "/" $registry) $name }}{{ end }}
{{- if $own.digest }}
{{- printf "%s@%s" $name $own.digest }}
{{- else }}
{{- printf "%s:%s" $name (default (default .root.Chart.AppVersion .root.Values.image.tag) $own.tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Every tenant with the defaults under it, as JSON (which knows every character); a tenant that is null has been taken out by somebody's values. */}}
{{- define "pyttpd.tenants" -}}
{{- $found := dict }}
{{- range $name, $tenant := .Values.tenants }}
{{- if not (kindIs "invalid" $tenant) }}
{{- $_ := set $found $name (mergeOverwrite (deepCopy $.Values.tenantDefaults) (deepCopy $tenant)) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/*
Every listener with the defaults under it, its uid, and its metrics' port, as JSON. They are counted in the order of their
names, as the configuration counts them in the order of their tables.
*/}}
{{- define "pyttpd.listeners" -}}
{{- $found := dict }}
{{- $position := 0 }}
{{- range $name, $listener := .Values.listeners }}
{{- if not (kindIs "invalid" $listener) }}
{{- $one := mergeOverwrite (deepCopy $.Values.listenerDefaults) (deepCopy $listener) }}
{{- $own := dict "uid" (add 10010 $position) "metrics_port" (add $.Values.metrics.basePort 3 $position) }}
{{- $_ := set $found $name (mergeOverwrite $own $one (dict "port" (regexFind "[0-9]+$" (default "" $one.address) | int))) }}
{{- $position = add1 $position }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* The uid that init runs under. */}}
{{- define "pyttpd.initUid" -}}
{{- if eq .Values.init.lowPorts "capability" }}0{{ else }}10000{{ end }}
{{- end }}

{{/* The lowest port below 1024 that a listener is on, or nothing. */}}
{{- define "pyttpd.lowestPort" -}}
{{- $lowest := 1024 }}
{{- range (include "pyttpd.listeners" . | fromJson) }}
{{- $lowest = min $lowest .port }}
{{- end }}
{{- if lt (int $lowest) 1024 }}{{ $lowest }}{{ end }}
{{- end }}

{{/* Longer than the longest way to leave: every role waits until its successors are known, listeners finish, then the rest. */}}
{{- define "pyttpd.gracePeriod" -}}
{{- $grace := ceil .Values.config.grace | int }}
{{- add .Values.drain.delaySeconds $grace $grace 5 }}
{{- end }}

{{/* Keys of a tenant's, or a listener's, table that are Kubernetes'; all others are the configuration's. */}}
{{- define "pyttpd.tenantKeys" -}}
image resources volumes tmp sharedMemory required command args entrypoint
{{- end }}
{{- define "pyttpd.listenerKeys" -}}
service hostPort resources port
{{- end }}
