package sim
import ("testing";"time")
func TestProf(t *testing.T) { run(t, Random(1000, 1, 10*time.Minute)) }
