package lab

// SeatStorageAddress is the operator's seat on the storage network: where a test
// puts a server of storage that is no file system.
const SeatStorageAddress = "10.79.0.254"

// SeatNetns is the path of the operator's seat's network namespace.
func (l *Lab) SeatNetns() string { return l.spec.netnsPath(operatorNS) }
