package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
)

// nodeTable is the name of the nft table in a node's namespace.
const nodeTable = "bulkhead"

// hostRules are those of the host's namespace: what goes from the subnet to the world has the host's address. What others send into
// the subnet may have it too, by a masquerading of theirs, as the pods of another cluster and containers of other engines do: so
// HostPort, where the host's address is trusted, is closed to all that the host only forwards.
func (n Network) hostRules() string {
	var rules, filters []string
	for k, subnet := range n.Subnets() {
		rules = append(rules, fmt.Sprintf(`%s saddr %s oifname != "%s" masquerade`, family(subnet), subnet, n.Bridge()))
		filters = append(filters, fmt.Sprintf(`iifname != "%s" %s daddr %s tcp dport %d drop`, n.Bridge(), family(subnet), n.ControlPlaneAddrs()[k], HostPort))
	}
	return table(n.hostTable(), rules, filters...)
}

// nodeRules are those of a node's namespace: outside the cluster nobody has a route to a pod, and neither has the host, so
// what a pod sends there has the node's address.
func (n Network) nodeRules() string {
	var rules []string
	services, subnets, host := n.ServiceCIDRs(), n.Subnets(), n.HostAddrs()
	for k, pods := range n.ClusterPodCIDRs() {
		rules = append(rules,
			fmt.Sprintf("%[1]s saddr %[2]s %[1]s daddr %[3]s masquerade", family(pods), pods, host[k]),
			fmt.Sprintf("%[1]s saddr %[2]s %[1]s daddr != { %[2]s, %[3]s, %[4]s } masquerade", family(pods), pods, services[k], subnets[k]))
	}
	return table(nodeTable, rules)
}

// table replaces a table in one transaction. Adding it first makes the deletion one of something that is there.
func table(name string, rules []string, filters ...string) string {
	forward := ""
	if len(filters) > 0 {
		forward = fmt.Sprintf(`
	chain forward {
		type filter hook forward priority filter; policy accept;
		%s
	}`, strings.Join(filters, "\n\t\t"))
	}
	return fmt.Sprintf(`add table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		%[2]s
	}%[3]s
}
`, name, strings.Join(rules, "\n\t\t"), forward)
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ip"
	}
	return "ip6"
}

// removeTable removes the host's table. Without nft there can't be one, unless other parts of the network were found.
func (n Network) removeTable(found bool) error {
	if checkPrograms() != nil && !found {
		return nil
	}
	err := nft(context.Background(), fmt.Sprintf("add table inet %[1]s\ndelete table inet %[1]s\n", n.hostTable()))
	if err != nil {
		return fmt.Errorf("remove nft table %s: %w", n.hostTable(), err)
	}
	return nil
}

// checkPrograms is done before anything is made.
func checkPrograms() error {
	_, err := nftPath()
	return err
}

// nftPath finds nft also for users whose PATH is without system programs.
func nftPath() (string, error) {
	for _, name := range []string{"nft", "/usr/sbin/nft", "/sbin/nft"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program nft isn't there: install the package nftables: %w", errdefs.ErrFailedPrecondition)
}

// nft applies rules, all or none, in the network namespace of the calling thread.
func nft(ctx context.Context, rules string) error {
	path, err := nftPath()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("%s -f -: %w: %s", path, err, strings.TrimSpace(string(out))), ctx.Err())
	}
	return nil
}
