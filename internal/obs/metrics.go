package obs

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is one agent's registry of metrics. Every name starts with "haven_";
// the constructors take it without that prefix. A wrong or repeated name is a
// mistake in the program and panics at start; nothing panics after that.
//
// Label values must come from a set that the configuration bounds (hosts,
// stores, kinds), never from the network: each new value is kept for ever.
//
// The methods of a nil *Metrics return working instruments that nobody reads,
// for tests and for parts that were given no registry.
type Metrics struct{ reg *prometheus.Registry }

// NewMetrics returns a registry that already has the Go runtime's and the
// process's own metrics.
func NewMetrics() *Metrics {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return &Metrics{reg: reg}
}

// Handler serves the metrics in the Prometheus text formats. At most four
// requests are answered at once, each within ten seconds. A collector that
// fails hides its own series only.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	})
}

var (
	metricName = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	labelName  = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

func fullName(name, help string, labels []string, suffixes ...string) string {
	if !metricName.MatchString(name) || strings.HasPrefix(name, "haven_") {
		panic(fmt.Sprintf("obs: metric name %q: want snake_case without the prefix haven_", name))
	}
	if help == "" {
		panic(fmt.Sprintf("obs: metric %q has no help text", name))
	}
	for _, l := range labels {
		if !labelName.MatchString(l) {
			panic(fmt.Sprintf("obs: metric %q: label %q is not snake_case", name, l))
		}
	}
	if len(suffixes) == 0 {
		return "haven_" + name
	}
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) {
			return "haven_" + name
		}
	}
	panic(fmt.Sprintf("obs: metric name %q: want one of the endings %v", name, suffixes))
}

func (m *Metrics) register(c prometheus.Collector) {
	if m != nil {
		m.reg.MustRegister(c)
	}
}

// Counter is a number that only grows.
type Counter struct{ vec *prometheus.CounterVec }

// Counter makes a counter. Its name ends in "_total".
func (m *Metrics) Counter(name, help string, labels ...string) *Counter {
	opts := prometheus.CounterOpts{Name: fullName(name, help, labels, "_total"), Help: help}
	c := &Counter{vec: prometheus.NewCounterVec(opts, labels)}
	if len(labels) == 0 {
		c.vec.WithLabelValues() // A counter that is still zero is shown.
	}
	m.register(c.vec)
	return c
}

// Inc adds one to the series with the given label values.
func (c *Counter) Inc(labelValues ...string) { c.Add(1, labelValues...) }

// Add adds v, which is not negative. A negative v, or a wrong number of label
// values, is ignored.
func (c *Counter) Add(v float64, labelValues ...string) {
	if s, err := c.vec.GetMetricWithLabelValues(valid(labelValues)...); err == nil && v >= 0 {
		s.Add(v)
	}
}

// Gauge is a number that goes up and down.
type Gauge struct{ vec *prometheus.GaugeVec }

// Gauge makes a gauge. Its name ends in its unit, or in nothing if it counts
// things.
func (m *Metrics) Gauge(name, help string, labels ...string) *Gauge {
	opts := prometheus.GaugeOpts{Name: fullName(name, help, labels), Help: help}
	g := &Gauge{vec: prometheus.NewGaugeVec(opts, labels)}
	m.register(g.vec)
	return g
}

// Set sets the series with the given label values.
func (g *Gauge) Set(v float64, labelValues ...string) {
	if s, err := g.vec.GetMetricWithLabelValues(valid(labelValues)...); err == nil {
		s.Set(v)
	}
}

// Add adds v, which may be negative.
func (g *Gauge) Add(v float64, labelValues ...string) {
	if s, err := g.vec.GetMetricWithLabelValues(valid(labelValues)...); err == nil {
		s.Add(v)
	}
}

// Forget removes the series with the given label values, for a thing that is
// no more.
func (g *Gauge) Forget(labelValues ...string) { g.vec.DeleteLabelValues(valid(labelValues)...) }

// GaugeFunc makes a gauge that is read when it is scraped. The function must
// not block.
func (m *Metrics) GaugeFunc(name, help string, read func() float64) {
	m.register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: fullName(name, help, nil), Help: help}, read))
}

// GaugesFunc makes a gauge with labels that is read when it is scraped: the
// function emits each series. It must not block.
func (m *Metrics) GaugesFunc(name, help string, labels []string, read func(emit func(v float64, labelValues ...string))) {
	m.register(gauges{prometheus.NewDesc(fullName(name, help, labels), help, labels, nil), read})
}

type gauges struct {
	desc *prometheus.Desc
	read func(emit func(v float64, labelValues ...string))
}

func (g gauges) Describe(to chan<- *prometheus.Desc) { to <- g.desc }

func (g gauges) Collect(to chan<- prometheus.Metric) {
	g.read(func(v float64, labelValues ...string) {
		if s, err := prometheus.NewConstMetric(g.desc, prometheus.GaugeValue, v, valid(labelValues)...); err == nil {
			to <- s
		}
	})
}

// CounterFunc makes a counter that is read when it is scraped. The function
// must not block, and its value must never fall.
func (m *Metrics) CounterFunc(name, help string, read func() float64) {
	m.register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: fullName(name, help, nil, "_total"), Help: help}, read))
}

// Histogram counts values by size.
type Histogram struct{ vec *prometheus.HistogramVec }

// Histogram makes a histogram with the given upper bounds, ascending. Its name
// ends in its unit, "_seconds" or "_bytes".
func (m *Metrics) Histogram(name, help string, bounds []float64, labels ...string) *Histogram {
	opts := prometheus.HistogramOpts{
		Name: fullName(name, help, labels, "_seconds", "_bytes"), Help: help, Buckets: bounds,
	}
	h := &Histogram{vec: prometheus.NewHistogramVec(opts, labels)}
	m.register(h.vec)
	return h
}

// Observe counts one value, in the unit of the name.
func (h *Histogram) Observe(v float64, labelValues ...string) {
	if s, err := h.vec.GetMetricWithLabelValues(valid(labelValues)...); err == nil {
		s.Observe(v)
	}
}

// valid replaces what is not UTF-8: one bad value would spoil a whole scrape.
func valid(values []string) []string {
	for i, v := range values {
		if fixed := strings.ToValidUTF8(v, "?"); fixed != v {
			values = append([]string(nil), values...)
			values[i] = fixed
		}
	}
	return values
}
