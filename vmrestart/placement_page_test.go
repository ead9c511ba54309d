package vmrestart

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
)

// TestPlacementPage holds docs/placement.md against the code: its numbers, the
// order of its tables and its words.
func TestPlacementPage(t *testing.T) {
	data, err := os.ReadFile("../docs/placement.md")
	if err != nil {
		t.Fatal(err)
	}
	table := func(name string) [][]string {
		_, rest, ok := strings.Cut(string(data), "<!-- begin "+name+" -->\n")
		body, _, ended := strings.Cut(rest, "\n<!-- end "+name+" -->")
		if !ok || !ended {
			t.Fatalf("there is no table %q", name)
		}
		var rows [][]string
		for _, line := range strings.Split(body, "\n")[2:] {
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
		return rows
	}
	t.Run("numbers", func(t *testing.T) {
		list := func(n ...int) string { return strings.ReplaceAll(strings.Trim(fmt.Sprint(n), "[]"), " ", ", ") }
		want := [][]string{
			{"hosts that an answer names", list(reasonsGiven)},
			{"octets of one reason", list(reasonLength)},
			{"band of load, percent", list(loadBand)},
			{"looks that one plan spends on moves", list(repairSteps)},
			{"sets of failed hosts tried, for more than one at once", list(surviveCases)},
			{"lost cases told in full", list(lossesKept)},
			{"steps to look for a plan that the planner did not find", list(proofSteps)},
			{"floor, memory alone: optimal, placed, all placed, thousandths", list(tightOptimal, tightPlaced, tightAll)},
			{"floor, with rules: optimal, placed, all placed, thousandths", list(planOptimal, planPlaced, planAll)},
			{"at most fewer than possible: memory alone, with rules", list(tightWorst, planWorst)},
		}
		if got := table("placement numbers"); !reflect.DeepEqual(got, want) {
			t.Errorf("the page has\n%v, the code\n%v", got, want)
		}
	})
	t.Run("obstacles", func(t *testing.T) { checkObstacles(t, table("obstacles")) })
	t.Run("score", func(t *testing.T) { checkScore(t, table("score")) })
}

// checkObstacles makes plans in which one obstacle stands before all of many hosts.
func checkObstacles(t *testing.T, rows [][]string) {
	vm := PlanVM{ID: "1", MemoryMiB: 2, Networks: []string{"x"}, Groups: []PlanGroup{strictApart}}
	obstacles := []func(h *PlanHost){
		func(h *PlanHost) { h.Starting = 1 },
		func(h *PlanHost) { h.FreeMiB = 1 },
		func(h *PlanHost) { h.Groups = map[PlanGroup]int{strictApart: 1} },
		func(h *PlanHost) { h.Networks.Known = true },
		func(h *PlanHost) { h.Refuses = "it is failed" },
	}
	if len(rows) != len(obstacles) {
		t.Fatalf("%d obstacles are told, there are %d", len(rows), len(obstacles))
	}
	holds := map[string]string{"`no-host`": haven.HoldNoHost, "`capacity`": haven.HoldCapacity, "none: it waits": ""}
	var hosts []PlanHost
	for i := range reasonsGiven + 1 {
		hosts = append(hosts, PlanHost{ID: haven.HostID(fmt.Sprint("h", i)), FreeMiB: 9})
	}
	// From the last to the first, each is added to those before: it must come first.
	for i, add := range obstacles {
		for h := range hosts {
			add(&hosts[h])
		}
		row := rows[len(rows)-1-i]
		hold, ok := holds[row[1]]
		p := Plan([]PlanVM{vm}, hosts, PlanLimits{StartsPerHost: 1})[0]
		if !ok || p.Hold != hold || !strings.HasSuffix(p.Why, ": 1 "+row[2]) {
			t.Errorf("%q: hold %q, %s", row, p.Hold, p.Why)
		}
	}
}

// checkScore makes hosts of which one is better in one line, and worse in all below.
func checkScore(t *testing.T, rows [][]string) {
	worse := []func(s *score){
		func(s *score) { s.failed++ }, func(s *score) { s.cramped++ }, func(s *score) { s.broken++ }, func(s *score) { s.preferred++ }, func(s *score) { s.zone++ },
		func(s *score) { s.last++ }, func(s *score) { s.starting++ }, func(s *score) { s.load++ }, func(s *score) { s.free-- }, func(s *score) { s.running++ },
	}
	words := []string{"fail", "keep-together", "preferred rules", "preferred hosts", "zone", "ran it last", "starts", "load", "memory", "VMs"}
	if n := reflect.TypeFor[score]().NumField(); len(rows) != n || len(worse) != n {
		t.Fatalf("%d lines are told, there are %d", len(rows), n)
	}
	for i := range worse {
		if rows[i][0] != fmt.Sprint(i+1) || !strings.Contains(rows[i][1], words[i]) {
			t.Errorf("line %d is %q, which does not speak of %s", i+1, rows[i], words[i])
		}
		a, b := score{free: 5}, score{free: 5}
		worse[i](&b)
		for _, f := range worse[i+1:] {
			f(&a)
		}
		if !a.better(b) || b.better(a) {
			t.Errorf("line %d does not come before those below", i+1)
		}
	}
}
