// Command heraldfs makes changes of a host directory arrive in a mount of it as the very inotify and
// fanotify events that a native mount delivers, and tells them as a stream.
//
// Each command is made by its own constructor and entered in the one list in
// root.go. The commands only wire packages together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if status, is := helperProcess(os.Args); is {
		os.Exit(status)
	}
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// exitError ends the program with a code of its own; without a text it ends silently.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

func run(argv []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	// Not nil: cobra would take os.Args then.
	root.SetArgs(append([]string{}, helperArgs(argv)...))
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	reportReady(err)
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "heraldfs:", text)
	}
	return code
}
