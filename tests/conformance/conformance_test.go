// containerd's own suite for snapshotters, run against a daemon that listens already.
package conformance

import (
	"context"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The cases share one snapshotter and call themselves parallel: run them with -test.parallel 1.
func TestConformance(t *testing.T) {
	address, name := os.Getenv("LAYERLIMIT_ADDRESS"), os.Getenv("LAYERLIMIT_SNAPSHOTTER")
	if address == "" {
		t.Fatal("LAYERLIMIT_ADDRESS is the socket to dial")
	}
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	open := func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), name)
		return snapshotter, func() error { return empty(ctx, snapshotter) }, nil
	}
	// The suite knows by this name that directories of lower layers cannot be renamed.
	testsuite.SnapshotterSuite(t, "overlayfs", open)
}

func empty(ctx context.Context, snapshotter snapshots.Snapshotter) error {
	for {
		var names []string
		err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			names = append(names, info.Name)
			return nil
		})
		if err != nil || len(names) == 0 {
			return err
		}
		removed := 0
		for _, name := range names {
			if err = snapshotter.Remove(ctx, name); err == nil {
				removed++
			}
		}
		if removed == 0 {
			return err
		}
	}
}
