package agent

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sysrqTrigger = "/proc/sysrq-trigger"
	pidNamespace = "/proc/self/ns/pid"
	// firstPIDNamespace is the number of the machine's own PID namespace: it is part
	// of the kernel's interface. In a container it is another one.
	firstPIDNamespace = 0xEFFFFFFC
	// resetTakes is how long the kernel is given for what it does at once.
	resetTakes = time.Second
)

// resetMachine resets this machine without syncing, unmounting or stopping
// anything: any of that could hang on the storage that is in trouble. In a
// container it ends that, and leaves the machine alone, which is not this host's.
func resetMachine() error {
	machine, err := inFirstPIDNamespace()
	if err == nil && machine {
		err = pullTrigger()
	}
	if rerr := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); rerr != nil {
		err = errors.Join(err, fmt.Errorf("reboot: %w", rerr))
	}
	<-time.After(resetTakes)
	return errors.Join(err, errors.New("the machine still runs"))
}

func inFirstPIDNamespace() (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(pidNamespace, &st); err != nil {
		return false, fmt.Errorf("look at the PID namespace: %w", err)
	}
	return st.Ino == firstPIDNamespace, nil
}

// pullTrigger asks the kernel for an immediate reboot (sysrq "b"). Root may do that
// whatever kernel.sysrq says, which is about keyboards.
func pullTrigger() error {
	f, err := os.OpenFile(sysrqTrigger, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("pull sysrq trigger: %w", err)
	}
	_, err = f.WriteString("b")
	if err == nil {
		<-time.After(resetTakes) // It should not come back from that.
	}
	return errors.Join(err, f.Close())
}
