// Haven is the operator's tool of a Haven cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/haven-ha/haven/internal/cli"
	"github.com/haven-ha/haven/internal/stores"
	"github.com/haven-ha/haven/storagebeat"
)

// version is set by the build.
var version = "dev"

// storeChild is the hidden argument of a store's child process.
const storeChild = "store-child"

func main() {
	if len(os.Args) > 1 && os.Args[1] == storeChild {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout, stores.Types()...))
	}
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Run(ctx, cli.Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now,
		Version: version, StoreChild: []string{"/proc/self/exe", storeChild},
	})
}
