package economy

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestShort(t *testing.T) {
	r, err := Run(t.Context(), Short())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = r.WriteTo(os.Stdout)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}
