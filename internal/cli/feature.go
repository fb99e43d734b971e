package cli

import (
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/feature"
)

func newFeatureCommand() *cobra.Command {
	return newNoun("feature", "Turn preview features on and off",
		`What may change, or does less than it seems to, is a preview feature: it is off until somebody registers it, for all clusters of
the state directory. A feature is NotRegistered, Registering while it is checked whether this host can have it, or Registered.
"bulkhead cluster update" makes a cluster that exists take note. Case doesn't matter in a feature's name.`,
		newFeatureListCommand(), newFeatureShowCommand(), newFeatureRegisterCommand(), newFeatureUnregisterCommand())
}

// completeFeatures offers the names of all features for the first argument.
func (p *place) completeFeatures(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := feature.Open(p.state).List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = f.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// featureRows are a table of features.
func featureRows(all ...feature.Feature) [][]string {
	rows := [][]string{{"FEATURE", "STATE", "WHAT IT IS"}}
	for _, f := range all {
		rows = append(rows, []string{f.Name, string(f.State), f.About})
	}
	return rows
}
