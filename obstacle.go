package haven

// Obstacle is one reason why a VM cannot be protected, or not be moved to
// another host.
type Obstacle struct {
	Reason ObstacleReason `json:"reason"`
	Device string         `json:"device,omitempty"` // which one, as the definition names it
	Why    string         `json:"why"`              // for people
}

// ObstacleReason is why a VM cannot be moved, in one word.
type ObstacleReason string

// The reasons why a VM cannot be moved.
const (
	ObstacleTransient  ObstacleReason = "transient"   // its definition is gone when it stops
	ObstacleHostDevice ObstacleReason = "host-device" // it uses hardware of its host
	ObstacleLocalDisk  ObstacleReason = "local-disk"  // a disk that can only be on its host
	ObstacleTPMState   ObstacleReason = "tpm-state"   // its TPM's memory is on its host
)
