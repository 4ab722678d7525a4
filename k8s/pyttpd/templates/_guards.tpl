{{/*
What the schema can't say, because it is about several values at once. Each guard fails with a sentence that says what would
be right. `pyttpd check` has the last word about the configuration; these are the mistakes that are made in values.
*/}}
{{- define "pyttpd.guards" -}}
{{- $listeners := include "pyttpd.listeners" . | fromJson }}
{{- $tenants := include "pyttpd.tenants" . | fromJson }}
{{- $base := int .Values.metrics.basePort }}

{{- /* ---- listeners ---- */}}
{{- if not $listeners }}
{{- fail "listeners: there is none, so nobody could connect; give one, such as listeners.http.address \"0.0.0.0:80\"" }}
{{- end }}
{{- if gt (len $listeners) 6 }}
{{- fail (printf "listeners: there are %d, and a tree has at most 6" (len $listeners)) }}
{{- end }}
{{- if hasKey $listeners "metrics" }}
{{- fail "listeners.metrics: this name is the tenants' metrics listener's; choose another one" }}
{{- end }}
{{- $addresses := dict }}
{{- $uids := dict "10009" "the tenants' metrics listener" }}
{{- $metricsPorts := dict (toString $base) "init" (toString (add $base 1)) "master" (toString (add $base 2)) "umaster" (toString (add $base 9)) "the metrics listener" (toString (add $base 10)) "the tenants" }}
{{- range $name, $one := $listeners }}
{{- if not (regexMatch "^[a-z][a-z0-9-]{0,31}$" $name) }}
{{- fail (printf "listeners.%s: a name is at most 32 lower-case letters, digits and \"-\", and begins with a letter" $name) }}
{{- end }}
{{- if not (regexMatch ":[0-9]{1,5}$" (default "" $one.address)) }}
{{- fail (printf "listeners.%s.address: an IP address and a port are needed, such as \"0.0.0.0:80\"" $name) }}
{{- end }}
{{- with get $addresses $one.address }}
{{- fail (printf "listeners.%s.address: %s is listeners.%s's already" $name $one.address .) }}
{{- end }}
{{- $_ := set $addresses $one.address $name }}
{{- $uid := toString (int $one.uid) }}
{{- with get $uids $uid }}
{{- fail (printf "listeners.%s.uid: %s is the uid of %s already; each listener needs its own" $name $uid .) }}
{{- end }}
{{- $_ := set $uids $uid (printf "listeners.%s" $name) }}
{{- $own := toString (int $one.metrics_port) }}
{{- with get $metricsPorts $own }}
{{- fail (printf "listeners.%s.metrics_port: %s is the metrics port of %s already" $name $own .) }}
{{- end }}
{{- $_ := set $metricsPorts $own (printf "listeners.%s" $name) }}
{{- end }}
{{- range $name, $one := $listeners }}
{{- with get $metricsPorts (toString (int $one.port)) }}
{{- fail (printf "listeners.%s.address: port %d is the metrics port of %s; choose another one, or another metrics.basePort" $name (int $one.port) .) }}
{{- end }}
{{- end }}
{{- if .Values.service.enabled }}
{{- $published := dict }}
{{- range $name, $one := $listeners }}
{{- if $one.service.enabled }}
{{- $port := toString (int (default $one.port $one.service.port)) }}
{{- with get $published $port }}
{{- fail (printf "listeners.%s.service.port: the Service has port %s from listeners.%s already; give another one, or service.enabled false (for a second family of addresses on one port, one of the two)" $name $port .) }}
{{- end }}
{{- $_ := set $published $port $name }}
{{- end }}
{{- end }}
{{- if not $published }}
{{- fail "service.enabled: no listener has service.enabled, and a Service needs a port" }}
{{- end }}
{{- end }}

{{- /* ---- tenants ---- */}}
{{- $hosts := dict }}
{{- $owners := dict }}
{{- $default := "" }}
{{- range $name, $one := $tenants }}
{{- if not (regexMatch "^[a-z][a-z0-9-]{0,31}$" $name) }}
{{- fail (printf "tenants.%s: a name is at most 32 lower-case letters, digits and \"-\", and begins with a letter" $name) }}
{{- end }}
{{- if not $one.uid }}
{{- fail (printf "tenants.%s.uid: a tenant has a uid of its own, 20001 or above, that stays the same for good: its files belong to it" $name) }}
{{- end }}
{{- if and (not $one.hosts) (not $one.default) }}
{{- fail (printf "tenants.%s.hosts: no client would find it; give the names that it answers for, or default true" $name) }}
{{- end }}
{{- range $one.hosts }}
{{- $host := lower . | trimSuffix "." }}
{{- with get $hosts $host }}
{{- if eq . $name }}
{{- fail (printf "tenants.%s.hosts: %s stands there twice" $name $host) }}
{{- end }}
{{- fail (printf "tenants.%s.hosts: %s is tenants.%s's already; a host has one owner" $name $host .) }}
{{- end }}
{{- $_ := set $hosts $host $name }}
{{- end }}
{{- if $one.default }}
{{- if $default }}
{{- fail (printf "tenants.%s.default: tenants.%s is the default already; one tenant gets what nobody owns" $name $default) }}
{{- end }}
{{- $default = $name }}
{{- end }}
{{- $uid := toString (int $one.uid) }}
{{- with get $owners $uid }}
{{- if not (and $one.share_uid (get $tenants .).share_uid) }}
{{- fail (printf "tenants.%s.uid: %s is the uid of tenants.%s, too: nothing would protect them from each other; give another one, or say share_uid true for both" $name $uid .) }}
{{- end }}
{{- end }}
{{- $_ := set $owners $uid $name }}
{{- range $key := list "command" "args" "entrypoint" }}
{{- if hasKey $one $key }}
{{- if or (gt (len $tenants) 1) (not $.Values.networkPolicy.enabled) (ne $key "command") }}
{{- fail (printf "tenants.%s.%s: what starts a tenant's container confines it, so an entry point of its own can't be confined from within: with command it may have one in a pod of its own, as the only tenant of a release with networkPolicy.enabled; docs/kubernetes.md says more" $name $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- $paths := dict }}
{{- $volumes := dict }}
{{- range $index, $volume := $one.volumes }}
{{- $path := clean $volume.mountPath }}
{{- range $ours := list "/run" "/etc" "/proc" "/sys" "/dev" "/tmp" "/usr" "/lib" "/lib64" "/bin" "/sbin" }}
{{- if or (eq $path "/") (eq $path $ours) (and (hasPrefix (printf "%s/" $ours) $path) (ne $ours "/etc")) (hasPrefix "/etc/pyttpd" $path) }}
{{- fail (printf "tenants.%s.volumes: %s: this place is the system's or pyttpd's own; mount it below another folder, such as /srv" $name $path) }}
{{- end }}
{{- end }}
{{- if hasKey $paths $path }}
{{- fail (printf "tenants.%s.volumes: two of them are mounted at %s" $name $path) }}
{{- end }}
{{- $_ := set $paths $path true }}
{{- if hasKey $volumes $volume.name }}
{{- fail (printf "tenants.%s.volumes: two of them are called %s" $name $volume.name) }}
{{- end }}
{{- $_ := set $volumes $volume.name true }}
{{- $sources := without (keys $volume) "name" "mountPath" "subPath" "readOnly" }}
{{- if ne (len $sources) 1 }}
{{- fail (printf "tenants.%s.volumes: %s needs one source, such as configMap or persistentVolumeClaim; it has %d" $name $volume.name (len $sources)) }}
{{- end }}
{{- if and (hasKey $volume "image") (semverCompare "<1.31.0-0" $.Capabilities.KubeVersion.Version) }}
{{- fail (printf "tenants.%s.volumes: %s is an image, which Kubernetes %s doesn't mount; that takes 1.31 with the feature gate ImageVolume, or 1.35" $name $volume.name $.Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* ---- the workload ---- */}}
{{- if eq .Values.kind "DaemonSet" }}
{{- if .Values.autoscaling.enabled }}
{{- fail "autoscaling.enabled: a DaemonSet has one pod on each node, and isn't scaled; use kind Deployment, or turn it off" }}
{{- end }}
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas: %d is more than maxReplicas, %d" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- end }}
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if and .enabled (kindIs "invalid" .minAvailable) (kindIs "invalid" .maxUnavailable) }}
{{- fail "podDisruptionBudget: give minAvailable or maxUnavailable, or turn it off" }}
{{- end }}
{{- end }}
{{- if and (eq .Values.init.lowPorts "none") (include "pyttpd.lowestPort" .) }}
{{- fail (printf "init.lowPorts: with none no listener may be on a port below 1024, and one is on %s; use sysctl, or listen on 8080 and let the Service have port 80" (include "pyttpd.lowestPort" .)) }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
{{- fail "metrics: serviceMonitor and podMonitor would scrape everything twice; turn one of them off" }}
{{- end }}
{{- end }}
