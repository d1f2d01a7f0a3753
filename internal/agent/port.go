package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/heraldfs/heraldfs/protocol"
)

// PortName is the virtio-serial port that is used if nobody names another.
const PortName = "org.heraldfs.agent.0"

const portClass = "/sys/class/virtio-ports"

// OpenPort opens a virtio-serial port by its name. One program at a time can have it open.
func OpenPort(name string) (protocol.Channel, error) {
	return openPort(portClass, "/dev", name)
}

func openPort(class, dev, name string) (protocol.Channel, error) {
	files, err := filepath.Glob(filepath.Join(class, "*", "name"))
	if err != nil {
		return nil, err
	}
	var have []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // unplugged meanwhile
		}
		n := strings.TrimSpace(string(b))
		if n != name {
			have = append(have, n)
			continue
		}
		// Not blocking, so that reading it can be given up.
		port, err := os.OpenFile(filepath.Join(dev, filepath.Base(filepath.Dir(f))), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("virtio-serial port %s: %w", name, err)
		}
		return port, nil
	}
	if len(have) == 0 {
		return nil, fmt.Errorf("no virtio-serial port %s, nor any other: %w", name, os.ErrNotExist)
	}
	return nil, fmt.Errorf("no virtio-serial port %s, only %s: %w", name, strings.Join(have, ", "), os.ErrNotExist)
}
