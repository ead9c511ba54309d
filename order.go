package haven

// OrderID names an order. It is the VM's id and the epoch of the start, so that
// two orders for one start cannot exist.
type OrderID string

// Order is an instruction to one agent to start one VM. It is in the ledger
// before it is sent.
type Order struct {
	ID       OrderID    `json:"id"`
	VM       VMID       `json:"vm"`
	Name     string     `json:"name"`
	Epoch    Epoch      `json:"epoch"`
	Incident IncidentID `json:"incident,omitempty"`
	// Target is the host that is to start the VM. The order is void on any
	// other boot, and for any other data directory, than the ones named here.
	Target      HostID  `json:"target"`
	TargetBoot  BootID  `json:"target_boot"`
	TargetState StateID `json:"target_state"`
	// Term is that of the master that committed the order. An agent that saw
	// a newer one refuses it.
	Term Term `json:"term"`
	// DefinitionSHA is the hex SHA-256 of the VM's definition.
	DefinitionSHA string `json:"definition_sha"`
	MemoryMiB     uint64 `json:"memory_mib"`
}

// OrderStatus is what an agent says about an order.
type OrderStatus string

// The states of an order.
const (
	OrderNone     OrderStatus = ""         // nothing was heard of it
	OrderAccepted OrderStatus = "accepted" // written to the agent's disk; the start may be under way
	OrderStarted  OrderStatus = "started"  // the VM runs
	OrderRefused  OrderStatus = "refused"  // not begun, and never will be
	OrderFailed   OrderStatus = "failed"   // begun, failed, and the VM is gone
	OrderUnknown  OrderStatus = "unknown"  // begun; its outcome is not known yet
)

// Final says whether the status will not change any more.
func (s OrderStatus) Final() bool {
	return s == OrderStarted || s == OrderRefused || s == OrderFailed
}

// OrderReport is an agent's answer about one order.
type OrderReport struct {
	// Boot and State are those of the agent that speaks. An agent that lost its
	// directory knows nothing of what its predecessor began.
	Boot   BootID      `json:"boot"`
	State  StateID     `json:"state"`
	Order  OrderID     `json:"order"`
	VM     VMID        `json:"vm"`
	Epoch  Epoch       `json:"epoch"`
	Status OrderStatus `json:"status"`
	Detail string      `json:"detail,omitempty"`
	// Locked says that the VM manager refused because another process holds a
	// lock on the VM's disks: worth a quick retry.
	Locked bool `json:"locked,omitempty"`
}
