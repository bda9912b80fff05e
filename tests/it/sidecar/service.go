// A Go service as people write them: client_golang, net/http/pprof, one endpoint that burns CPU.
//
// In: an address to listen on. Out: its address on standard output, /metrics, /debug/pprof/*, /checkout and /burn.
package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// CPU time of this process so far; unlike wall time it does not depend on who else is busy.
func used() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

//go:noinline
func burnInGo(cpu time.Duration) uint64 {
	var sum uint64
	for until := used() + cpu; used() < until; {
		for i := uint64(0); i < 100000; i++ {
			sum = sum*31 + i
		}
	}
	return sum
}

func burn(w http.ResponseWriter, r *http.Request) {
	duration, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, burnInGo(duration))
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_request_duration_seconds",
		Help:    "Request durations.",
		Buckets: []float64{0.1, 0.5, 1},
	}, []string{"handler", "code", "method"})
	prometheus.MustRegister(durations)
	handle := func(path string, handler http.HandlerFunc) {
		of := durations.MustCurryWith(prometheus.Labels{"handler": path})
		http.Handle(path, promhttp.InstrumentHandlerDuration(of, handler))
	}
	handle("/checkout", func(w http.ResponseWriter, r *http.Request) {})
	handle("/burn", burn)
	http.Handle("/metrics", promhttp.Handler())
	fmt.Println(listener.Addr())
	fmt.Fprintln(os.Stderr, http.Serve(listener, nil))
}
