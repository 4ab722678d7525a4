{{/* The pod: one tree. Used by the Deployment and the DaemonSet. */}}
{{- define "pyttpd.podTemplate" -}}
metadata:
  labels:
    {{- include "pyttpd.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # init and master read the configuration once: a changed one takes new pods.
    checksum/configuration: {{ include "pyttpd.configuration" . | sha256sum }}
    kubectl.kubernetes.io/default-container: umaster
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "pyttpd.serviceAccountName" . }}
  # Nobody here speaks to the cluster, and a tenant must not be able to.
  automountServiceAccountToken: false
  enableServiceLinks: false
  shareProcessNamespace: false
  {{- if not (kindIs "invalid" .Values.hostUsers) }}
  hostUsers: {{ .Values.hostUsers }}
  {{- end }}
  terminationGracePeriodSeconds: {{ include "pyttpd.gracePeriod" . }}
  securityContext:
    {{- if ne .Values.init.lowPorts "capability" }}
    runAsNonRoot: true
    {{- end }}
    seccompProfile:
      type: RuntimeDefault
    {{- if and (eq .Values.init.lowPorts "sysctl") (include "pyttpd.lowestPort" .) }}
    # A safe sysctl of the pod's own network: init needs no privilege then.
    sysctls:
      - name: net.ipv4.ip_unprivileged_port_start
        value: {{ include "pyttpd.lowestPort" . | quote }}
    {{- end }}
    {{- with .Values.podSecurityContext }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.kind "Deployment" }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    -
      {{- if not .labelSelector }}
      labelSelector:
        matchLabels:
          {{- include "pyttpd.selectorLabels" $ | nindent 10 }}
      {{- end }}
      {{- toYaml . | nindent 6 }}
    {{- end }}
  {{- end }}
  {{- end }}
  initContainers:
    # A native sidecar: it is there before all others, and ends after them, so that the sockets stay open.
    {{- include "pyttpd.initContainer" . | nindent 4 }}
  containers:
    {{- include "pyttpd.containers" . | nindent 4 }}
  volumes:
    {{- include "pyttpd.volumes" . | nindent 4 }}
{{- end }}
