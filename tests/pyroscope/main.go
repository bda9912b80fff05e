// Reads a profile with the decoder that Pyroscope ingests profiles with, and says what it understood.
//
// In: a gzipped profile.proto message on stdin. Out: one JSON object, with every reference resolved. Ends with 1 at what does
// not decode, at fields that the format does not know, and at a reference to nothing.
//
// It shares no code with github.com/google/pprof, from which `go tool pprof` is built.
package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"

	profilev1 "github.com/grafana/pyroscope/api/gen/proto/go/google/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

type label struct {
	Key    string `json:"key"`
	Text   string `json:"text"`
	Number int64  `json:"number"`
	Unit   string `json:"unit"`
}

type frame struct {
	Function string `json:"function"`
	File     string `json:"file"`
	Line     int64  `json:"line"`
	Address  uint64 `json:"address"`
}

type sample struct {
	// Innermost first.
	Frames []frame `json:"frames"`
	Values []int64 `json:"values"`
	Labels []label `json:"labels"`
}

type mapping struct {
	File    string `json:"file"`
	BuildID string `json:"build_id"`
	Start   uint64 `json:"start"`
	Limit   uint64 `json:"limit"`
	Offset  uint64 `json:"offset"`
	// As `go tool pprof -raw` prints what a mapping says of its symbols.
	Has string `json:"has"`
}

type understood struct {
	Kinds       []string  `json:"kinds"`
	DefaultKind string    `json:"default_kind"`
	PeriodKind  string    `json:"period_kind"`
	Period      int64     `json:"period"`
	Nanoseconds int64     `json:"nanoseconds"`
	Comments    []string  `json:"comments"`
	Mappings    []mapping `json:"mappings"`
	Samples     []sample  `json:"samples"`
}

func main() {
	if err := read(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read() error {
	unzipped, err := gzip.NewReader(os.Stdin)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(unzipped)
	if err != nil {
		return err
	}
	var message profilev1.Profile
	if err := message.UnmarshalVT(body); err != nil {
		return err
	}
	reader := reader{profile: &message}
	found := reader.understand()
	if reader.err != nil {
		return reader.err
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

// reader resolves references and keeps the first fault.
type reader struct {
	profile   *profilev1.Profile
	locations map[uint64]*profilev1.Location
	functions map[uint64]*profilev1.Function
	mappings  map[uint64]*profilev1.Mapping
	err       error
}

func (r *reader) fault(format string, details ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, details...)
	}
}

// known faults where a message carries fields that the format does not have.
func (r *reader) known(what string, message protoreflect.ProtoMessage) {
	if unknown := len(message.ProtoReflect().GetUnknown()); unknown > 0 {
		r.fault("%s: %d bytes of unknown fields", what, unknown)
	}
}

func (r *reader) text(index int64) string {
	if index < 0 || index >= int64(len(r.profile.StringTable)) {
		r.fault("no string %d", index)
		return ""
	}
	return r.profile.StringTable[index]
}

func (r *reader) kind(kind *profilev1.ValueType) string {
	r.known("a kind", kind)
	return r.text(kind.GetType()) + "/" + r.text(kind.GetUnit())
}

func byID[T interface{ GetId() uint64 }](r *reader, what string, all []T) map[uint64]T {
	found := make(map[uint64]T, len(all))
	for _, one := range all {
		if _, taken := found[one.GetId()]; taken || one.GetId() == 0 {
			r.fault("%s %d is not one", what, one.GetId())
		}
		found[one.GetId()] = one
	}
	return found
}

func (r *reader) understand() understood {
	profile := r.profile
	r.known("the profile", profile)
	if len(profile.StringTable) == 0 || profile.StringTable[0] != "" {
		r.fault("the first string is not empty")
	}
	r.locations = byID(r, "location", profile.Location)
	r.functions = byID(r, "function", profile.Function)
	r.mappings = byID(r, "mapping", profile.Mapping)
	found := understood{
		DefaultKind: r.text(profile.DefaultSampleType),
		PeriodKind:  r.kind(profile.PeriodType),
		Period:      profile.Period,
		Nanoseconds: profile.DurationNanos,
		Kinds:       []string{},
		Comments:    []string{},
		Mappings:    []mapping{},
		Samples:     []sample{},
	}
	for _, kind := range profile.SampleType {
		found.Kinds = append(found.Kinds, r.kind(kind))
	}
	for _, comment := range profile.Comment {
		found.Comments = append(found.Comments, r.text(comment))
	}
	for _, one := range profile.Mapping {
		found.Mappings = append(found.Mappings, r.mapping(one))
	}
	for _, one := range profile.Sample {
		found.Samples = append(found.Samples, r.sample(one))
	}
	return found
}

func (r *reader) mapping(one *profilev1.Mapping) mapping {
	r.known("a mapping", one)
	has := ""
	for _, said := range []struct {
		is   bool
		flag string
	}{
		{one.HasFunctions, "[FN]"}, {one.HasFilenames, "[FL]"}, {one.HasLineNumbers, "[LN]"}, {one.HasInlineFrames, "[IN]"},
	} {
		if said.is {
			has += said.flag
		}
	}
	return mapping{
		File: r.text(one.Filename), BuildID: r.text(one.BuildId),
		Start: one.MemoryStart, Limit: one.MemoryLimit, Offset: one.FileOffset, Has: has,
	}
}

func (r *reader) sample(one *profilev1.Sample) sample {
	r.known("a sample", one)
	if len(one.Value) != len(r.profile.SampleType) {
		r.fault("a sample has %d values", len(one.Value))
	}
	found := sample{Values: one.Value, Frames: []frame{}, Labels: []label{}}
	for _, id := range one.LocationId {
		location, exists := r.locations[id]
		if !exists {
			r.fault("no location %d", id)
			continue
		}
		r.known("a location", location)
		if mapping, exists := r.mappings[location.MappingId]; exists {
			if location.Address < mapping.MemoryStart || location.Address >= mapping.MemoryLimit {
				r.fault("location %d is not in its mapping", id)
			}
		} else if location.MappingId != 0 {
			r.fault("no mapping %d", location.MappingId)
		}
		if len(location.Line) == 0 {
			found.Frames = append(found.Frames, frame{Address: location.Address})
		}
		for _, line := range location.Line {
			r.known("a line", line)
			function, exists := r.functions[line.FunctionId]
			if !exists {
				r.fault("no function %d", line.FunctionId)
				continue
			}
			r.known("a function", function)
			found.Frames = append(found.Frames, frame{
				Function: r.text(function.Name), File: r.text(function.Filename),
				Line: line.Line, Address: location.Address,
			})
		}
	}
	for _, one := range one.Label {
		r.known("a label", one)
		if one.Str != 0 && one.Num != 0 {
			r.fault("a label is both a text and a number")
		}
		found.Labels = append(found.Labels, label{
			Key: r.text(one.Key), Text: r.text(one.Str), Number: one.Num, Unit: r.text(one.NumUnit),
		})
	}
	return found
}
