package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/heraldfs/heraldfs/protocol"
	"github.com/heraldfs/heraldfs/protocol/transport"
)

// Flags are the command line of an agent, which is a command of heraldfs and a program of its own.
type Flags struct {
	Connect  string
	Security transport.Security
}

// Usage is what there is to say of Flags.Connect.
const Usage = `Where the host is (--connect):

  virtio:NAME       the virtio-serial port of that name (the default: virtio:` + PortName + `)
  vsock://2:PORT    the host by vsock
  tcp://HOST:PORT   with --tls-cert, --tls-key and --tls-ca; on a loopback address --token-file will do

Waits for the mount and for the host, as often as need be. Needs root. SIGINT and SIGTERM end it. Without it
the mount works as well, but nothing is heard, and names and attributes are cached for one second only.`

// Register adds the flags to fs.
func (f *Flags) Register(fs *pflag.FlagSet) {
	fs.StringVar(&f.Connect, "connect", "virtio:"+PortName, "`URL` of the host, see above")
	fs.StringVar(&f.Security.CertFile, "tls-cert", "", "our certificate (PEM `file`), for tcp:// and vsock://")
	fs.StringVar(&f.Security.KeyFile, "tls-key", "", "its key (PEM `file`)")
	fs.StringVar(&f.Security.CAFile, "tls-ca", "", "who signs the host's certificate (PEM `file`)")
	fs.StringVar(&f.Security.TokenFile, "token-file", "", "a `file` with a secret of 16 bytes or more that both sides know")
}

// Options reads the files that the flags name, and fills Open and Token of o.
func (f *Flags) Options(o *Options) error {
	if err := f.Security.Load(); err != nil {
		return err
	}
	o.Token = f.Security.Token()
	if name, ok := strings.CutPrefix(f.Connect, "virtio:"); ok {
		if name == "" {
			return fmt.Errorf("--connect %s: give the name of a virtio-serial port, as in virtio:%s", f.Connect, PortName)
		}
		o.Open = func(context.Context) (protocol.Channel, error) { return OpenPort(name) }
		return nil
	}
	u, err := transport.Parse(f.Connect)
	if err != nil {
		return fmt.Errorf("--connect: %w, or virtio:NAME", err)
	}
	if err := u.SafeToDial(&f.Security); err != nil {
		return fmt.Errorf("--connect: %w", err)
	}
	o.Open = func(ctx context.Context) (protocol.Channel, error) { return u.Dial(ctx, &f.Security) }
	return nil
}
