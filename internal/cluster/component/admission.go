package component

import (
	"sigs.k8s.io/yaml"

	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

// podSecurity is the configuration of Pod Security Admission, pod-security.admission.config.k8s.io/v1.
type podSecurity struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Defaults   map[string]string `json:"defaults"`
	Exemptions exemptions        `json:"exemptions"`
}

type exemptions struct {
	Usernames      []string `json:"usernames"`
	RuntimeClasses []string `json:"runtimeClasses"`
	Namespaces     []string `json:"namespaces"`
}

type plugin struct {
	Name          string      `json:"name"`
	Configuration podSecurity `json:"configuration"`
}

type admissionConfiguration struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Plugins    []plugin `json:"plugins"`
}

// admissionConfig has the cluster's defaults of Pod Security Admission: what holds for a namespace without labels.
func admissionConfig(c spec.Config) ([]byte, error) {
	p := c.PodSecurity
	return yaml.Marshal(admissionConfiguration{
		APIVersion: "apiserver.config.k8s.io/v1",
		Kind:       "AdmissionConfiguration",
		Plugins: []plugin{{Name: "PodSecurity", Configuration: podSecurity{
			APIVersion: "pod-security.admission.config.k8s.io/v1",
			Kind:       "PodSecurityConfiguration",
			Defaults: map[string]string{
				"enforce": p.Enforce, "enforce-version": p.EnforceVersion,
				"audit": p.Audit, "audit-version": p.AuditVersion,
				"warn": p.Warn, "warn-version": p.WarnVersion,
			},
			Exemptions: exemptions{Usernames: []string{}, RuntimeClasses: []string{}, Namespaces: p.ExemptNamespaces},
		}}},
	})
}
