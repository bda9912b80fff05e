// Reads an exposition as a scrape of Prometheus 3 would, with Prometheus' own parser, and says what it understood.
//
// In: the Content-Type as the argument, the body on stdin. Out: one JSON object per sample, native histogram and exemplar.
// Ends with 1 at the first thing that Prometheus would refuse.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

type bucket struct {
	Upper string  `json:"upper"`
	Count float64 `json:"count"`
}

type entry struct {
	Kind     string            `json:"kind"`
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels"`
	Value    string            `json:"value,omitempty"`
	Schema   int32             `json:"schema,omitempty"`
	Count    uint64            `json:"count,omitempty"`
	Buckets  []bucket          `json:"buckets,omitempty"`
	Exemplar map[string]string `json:"exemplar,omitempty"`
}

func main() {
	if err := read(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(contentType string) error {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	options := textparse.ParserOptions{KeepClassicOnClassicAndNativeHistograms: true}
	parser, err := textparse.New(body, contentType, nil, options)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for {
		kind, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var found entry
		switch kind {
		case textparse.EntrySeries:
			_, _, value := parser.Series()
			found = entry{Kind: "sample", Value: text(value)}
		case textparse.EntryHistogram:
			_, _, whole, _ := parser.Histogram()
			if found, err = native(whole); err != nil {
				return err
			}
		default:
			continue
		}
		var series labels.Labels
		parser.Labels(&series)
		found.Labels = series.Map()
		found.Name = found.Labels[labels.MetricName]
		delete(found.Labels, labels.MetricName)
		if err := out.Encode(found); err != nil {
			return err
		}
		for kept := (exemplar.Exemplar{}); parser.Exemplar(&kept); kept = (exemplar.Exemplar{}) {
			if !kept.HasTs {
				return errors.New("an exemplar has no time")
			}
			found := entry{Kind: "exemplar", Name: found.Name, Labels: found.Labels, Value: text(kept.Value), Exemplar: kept.Labels.Map()}
			if err := out.Encode(found); err != nil {
				return err
			}
		}
	}
}

func native(whole *histogram.Histogram) (entry, error) {
	if whole == nil {
		return entry{}, errors.New("a native histogram has no whole counts")
	}
	if err := whole.Validate(); err != nil {
		return entry{}, err
	}
	found := entry{Kind: "native", Schema: whole.Schema, Count: whole.Count, Value: text(whole.Sum)}
	found.Buckets = append(found.Buckets, bucket{text(whole.ZeroThreshold), float64(whole.ZeroCount)})
	for buckets := whole.PositiveBucketIterator(); buckets.Next(); {
		at := buckets.At()
		found.Buckets = append(found.Buckets, bucket{text(at.Upper), float64(at.Count)})
	}
	return found, nil
}

func text(value float64) string {
	return strconv.FormatFloat(value, 'g', -1, 64)
}
