// Command peers runs containerd's layer engine on a directory: what layerlimit is measured against.
//
//	peers apply DIRECTORY < layer.tar     unpacks a layer, whiteouts included
//	peers diff UPPER LOWER > layer.tar    packs what UPPER has and LOWER has not
//
// apply takes plain, gzip and zstd streams and prints the diff ID that it computes on the way, as containerd's
// applier does; with -digest=false it only unpacks. With -sync it ends with syncfs. The tree that comes of it is what
// archive.Apply makes of one without a parent: whiteouts delete.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"golang.org/x/sys/unix"
)

func main() {
	digest := flag.Bool("digest", true, "compute the diff ID")
	sync := flag.Bool("sync", false, "end with syncfs")
	flag.Parse()
	if err := run(flag.Args(), *digest, *sync); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(args []string, digest, sync bool) error {
	switch {
	case len(args) == 2 && args[0] == "apply":
		return apply(args[1], digest, sync)
	case len(args) == 3 && args[0] == "diff":
		return archive.WriteDiff(context.Background(), os.Stdout, args[2], args[1])
	}
	return fmt.Errorf("usage: peers apply DIRECTORY | peers diff UPPER LOWER")
}

func apply(directory string, digest, sync bool) error {
	stream, err := compression.DecompressStream(os.Stdin)
	if err != nil {
		return err
	}
	defer stream.Close()
	hash := sha256.New()
	var reader io.Reader = stream
	if digest {
		reader = io.TeeReader(stream, hash)
	}
	if _, err := archive.Apply(context.Background(), directory, reader); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, reader); err != nil {
		return err
	}
	if sync {
		if err := syncFileSystem(directory); err != nil {
			return err
		}
	}
	if digest {
		fmt.Printf("sha256:%x\n", hash.Sum(nil))
	}
	return nil
}

func syncFileSystem(directory string) error {
	file, err := os.Open(directory)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Syncfs(int(file.Fd()))
}
