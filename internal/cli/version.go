package cli

import "github.com/spf13/cobra"

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "The version of this tool", Args: cobra.NoArgs,
		Example: "  haven version\n  haven version -o json",
		RunE: func(*cobra.Command, []string) error {
			if a.json() {
				return a.printJSON(struct {
					Version string `json:"version"`
				}{a.Version})
			}
			a.printf("%s\n", a.Version)
			return nil
		},
	}
}
