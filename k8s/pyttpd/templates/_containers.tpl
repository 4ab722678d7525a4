{{/*
The containers of the pod. What all have in common stands in "pyttpd.container"; each says its name, uid, arguments, ports,
channels and probes. The map of trust is the lists of channels here, as in compose.yaml: "binds" is mounted to be written,
"connects" to be read.
*/}}

{{- define "pyttpd.securityContext" -}}
runAsNonRoot: {{ ne (int .uid) 0 }}
runAsUser: {{ int .uid }}
runAsGroup: {{ int (default .uid .gid) }}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
privileged: false
capabilities:
  drop: [ALL]
  {{- with .capabilities }}
  add: {{ toJson . }}
  {{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* A probe by the role's health file: dict "probe" $settings "arguments" (list "--alive"). */}}
{{- define "pyttpd.probe" -}}
exec:
  command: {{ toJson (concat (list "/usr/bin/python3" "-I" "-m" "pyttpd.health") .arguments) }}
{{ toYaml .probe }}
{{- end }}

{{/*
dict "root" $ "name" "listener-http" "module" "pyttpd_listener" "image" $image "uid" 10010 "args" (list ...) "binds" (list ...)
"connects" (list ...) "ports" (list (dict ...)) "resources" {...} and, where a container has more than others, "gid",
"capabilities", "configured", "mounts", "startup", "gates", "leaves" ("first", "last", "never"), "sidecar", "command".
*/}}
{{- define "pyttpd.container" -}}
{{- $values := .root.Values }}
- name: {{ .name }}
  image: {{ .image | quote }}
  imagePullPolicy: {{ .pullPolicy | default $values.image.pullPolicy }}
  {{- if .sidecar }}
  restartPolicy: Always
  {{- end }}
  command: {{ toJson (default (list "/usr/bin/python3" "-I" "-m" .module) .command) }}
  args: {{ toJson (concat .args (list "--volumes" "--init-uid" (include "pyttpd.initUid" .root) "--grace" (toString $values.config.grace))) }}
  {{- with .ports }}
  ports:
    {{- range . }}
    - {{ toJson . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- include "pyttpd.securityContext" . | nindent 4 }}
  startupProbe:
    {{- include "pyttpd.probe" (dict "probe" (default $values.probes.startup .startupProbe) "arguments" (default list .startup)) | nindent 4 }}
  {{- if .gates }}
  readinessProbe:
    {{- include "pyttpd.probe" (dict "probe" $values.probes.readiness "arguments" list) | nindent 4 }}
  {{- end }}
  livenessProbe:
    {{- include "pyttpd.probe" (dict "probe" $values.probes.liveness "arguments" (list "--alive")) | nindent 4 }}
  {{- if ne .leaves "never" }}
  lifecycle:
    preStop:
      exec:
        {{- $delay := list "/usr/bin/python3" "-I" "-m" "pyttpd.prestop" "--delay" (toString $values.drain.delaySeconds) }}
        {{- if eq .leaves "last" }}
        {{- $delay = concat $delay (list "--until-left" (toString (add $values.metrics.basePort 2)) "--at-most" (toString (add $values.drain.delaySeconds (ceil $values.config.grace | int)))) }}
        {{- end }}
        command: {{ toJson $delay }}
  {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- toYaml .resources | nindent 4 }}
  volumeMounts:
    {{- range .binds }}
    - name: channel-{{ . }}
      mountPath: /run/pyttpd/{{ . }}
    {{- end }}
    {{- range .connects }}
    - name: channel-{{ . }}
      mountPath: /run/pyttpd/{{ . }}
      readOnly: true
    {{- end }}
    - name: health-{{ .name }}
      mountPath: /run/health
    {{- if .configured }}
    - name: configuration
      mountPath: /etc/pyttpd
      readOnly: true
    {{- end }}
    {{- range .mounts }}
    - {{ toJson . }}
    {{- end }}
{{- end }}

{{/* A volume in memory, as large as it has to be: dict "name" $name "size" "64Ki". */}}
{{- define "pyttpd.memory" -}}
- name: {{ .name }}
  emptyDir:
    medium: Memory
    sizeLimit: {{ .size }}
{{- end }}

{{- define "pyttpd.initContainer" -}}
{{- $listeners := include "pyttpd.listeners" . | fromJson }}
{{- $ports := list (dict "name" "metrics-init" "containerPort" (int .Values.metrics.basePort)) }}
{{- include "pyttpd.container" (dict
    "root" . "name" "init" "module" "pyttpd_init" "image" (include "pyttpd.image" (dict "root" . "role" "init"))
    "uid" (include "pyttpd.initUid" .) "args" (list "--config" "/etc/pyttpd/pyttpd.toml" "--take-back")
    "capabilities" (ternary (list "NET_BIND_SERVICE") list (eq .Values.init.lowPorts "capability"))
    "binds" (list "init") "connects" list "configured" true "gates" true "ports" $ports "sidecar" true "leaves" "never"
    "resources" .Values.init.resources) }}
{{- end }}

{{- define "pyttpd.containers" -}}
{{- $root := . }}
{{- $base := int .Values.metrics.basePort }}
{{ include "pyttpd.container" (dict
    "root" . "name" "master" "module" "pyttpd_master" "image" (include "pyttpd.image" (dict "root" . "role" "master"))
    "uid" 10001 "args" (list "--config" "/etc/pyttpd/pyttpd.toml") "binds" (list "master" "admin") "connects" (list "init")
    "configured" true "gates" true "leaves" "last" "resources" .Values.master.resources
    "ports" (list (dict "name" "metrics-master" "containerPort" (add $base 1)))) }}
{{ include "pyttpd.container" (dict
    "root" . "name" "umaster" "module" "pyttpd_umaster" "image" (include "pyttpd.image" (dict "root" . "role" "umaster"))
    "uid" 10002 "args" list "binds" (list "route" "vhost") "connects" (list "init" "master")
    "gates" true "leaves" "last" "resources" .Values.umaster.resources
    "ports" (list (dict "name" "metrics-umaster" "containerPort" (add $base 2)))) }}
{{- $position := 0 }}
{{- range $name, $one := (include "pyttpd.listeners" . | fromJson) }}
{{- $port := dict "name" (printf "listener-%d" $position) "containerPort" (int $one.port) }}
{{- with $one.hostPort }}{{ $_ := set $port "hostPort" (int .) }}{{ end }}
{{ include "pyttpd.container" (dict
    "root" $root "name" (printf "listener-%s" $name) "module" "pyttpd_listener"
    "image" (include "pyttpd.image" (dict "root" $root "role" "listener"))
    "uid" $one.uid "args" (list "--name" $name) "binds" list "connects" (list "init" "master" "route")
    "gates" true "leaves" "first" "resources" $one.resources
    "ports" (list $port (dict "name" (printf "metrics-l%d" $position) "containerPort" (int $one.metrics_port)))) }}
{{- $position = add1 $position }}
{{- end }}
{{ include "pyttpd.container" (dict
    "root" . "name" "listener-metrics" "module" "pyttpd_listener"
    "image" (include "pyttpd.image" (dict "root" . "role" "listener"))
    "uid" 10009 "args" (list "--name" "metrics") "binds" list "connects" (list "init" "master" "route")
    "gates" true "leaves" "first" "resources" .Values.metrics.listener.resources
    "ports" (list (dict "name" "metrics-lm" "containerPort" (add $base 9)) (dict "name" "metrics-tenants" "containerPort" (add $base 10)))) }}
{{- range $name, $one := (include "pyttpd.tenants" . | fromJson) }}
{{- $args := list "--name" $name }}
{{- range $one.allow }}{{ $args = concat $args (list "--allow" .) }}{{ end }}
{{- $mounts := list (dict "name" (printf "tmp-%s" $name) "mountPath" "/tmp") (dict "name" (printf "shm-%s" $name) "mountPath" "/dev/shm") }}
{{- range $one.volumes }}
{{- $mount := dict "name" (printf "of-%s-%s" $name .name) "mountPath" .mountPath "readOnly" (or (hasKey . "image") (ternary .readOnly true (hasKey . "readOnly"))) }}
{{- with .subPath }}{{ $_ := set $mount "subPath" . }}{{ end }}
{{- $mounts = append $mounts $mount }}
{{- end }}
{{- $image := default dict $one.image }}
{{ include "pyttpd.container" (dict
    "root" $root "name" (printf "vhost-%s" $name) "module" "pyttpd_vhost"
    "image" (include "pyttpd.tenantImage" (dict "root" $root "tenant" $one)) "pullPolicy" $image.pullPolicy
    "uid" $one.uid "gid" $one.gid "args" $args "command" $one.command "binds" list "connects" (list "master" "vhost")
    "gates" $one.required "startup" (ternary list (list "--within" (toString $root.Values.probes.tenants.withinSeconds)) (default false $one.required))
    "startupProbe" $root.Values.probes.tenants.startup
    "leaves" "last" "resources" $one.resources "mounts" $mounts "ports" list) }}
{{- end }}
{{- end }}

{{- define "pyttpd.volumes" -}}
{{- range $name := list "init" "master" "admin" "route" "vhost" }}
{{ include "pyttpd.memory" (dict "name" (printf "channel-%s" $name) "size" "64Ki") }}
{{- end }}
- name: configuration
  configMap:
    name: {{ include "pyttpd.fullname" . }}
    defaultMode: 0444
{{- range $name := list "init" "master" "umaster" "listener-metrics" }}
{{ include "pyttpd.memory" (dict "name" (printf "health-%s" $name) "size" "64Ki") }}
{{- end }}
{{- range $name, $one := (include "pyttpd.listeners" . | fromJson) }}
{{ include "pyttpd.memory" (dict "name" (printf "health-listener-%s" $name) "size" "64Ki") }}
{{- end }}
{{- range $name, $one := (include "pyttpd.tenants" . | fromJson) }}
{{ include "pyttpd.memory" (dict "name" (printf "health-vhost-%s" $name) "size" "64Ki") }}
{{ include "pyttpd.memory" (dict "name" (printf "tmp-%s" $name) "size" $one.tmp.sizeLimit) }}
{{ include "pyttpd.memory" (dict "name" (printf "shm-%s" $name) "size" $one.sharedMemory.sizeLimit) }}
{{- range $one.volumes }}
- name: {{ printf "of-%s-%s" $name .name }}
  {{- toYaml (omit . "name" "mountPath" "subPath" "readOnly") | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
