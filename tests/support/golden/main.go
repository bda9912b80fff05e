// Writes lists and objects of the metrics APIs with Kubernetes' own encoders: NAME.json and NAME.pb for each.
//
//	go run . ../../../src/adapter/wire/fixtures/encoded
//
// The values are those of src/adapter/wire/tests.rs.
package main

import (
	"bytes"
	"log"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	custom1 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta1"
	custom2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	external "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	metrics1 "k8s.io/metrics/pkg/apis/metrics/v1"
	metricsBeta "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

var (
	at     = metav1.NewTime(time.Unix(1790000000, 999000000).UTC())
	before = metav1.NewTime(time.Unix(-1, 0).UTC())
	thirty = int64(30)
	zero   = int64(0)
	q      = resource.MustParse
)

func selector(text string) *metav1.LabelSelector {
	parsed, err := metav1.ParseToLabelSelector(text)
	if err != nil {
		log.Fatal(err)
	}
	return parsed
}

func usage(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: q(cpu), corev1.ResourceMemory: q(memory)}
}

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		external.AddToScheme, custom1.AddToScheme, custom2.AddToScheme, metrics1.AddToScheme, metricsBeta.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			log.Fatal(err)
		}
	}
	pod := corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "checkout-0", APIVersion: "v1"}
	node := corev1.ObjectReference{Kind: "Node", Name: "worker", APIVersion: "v1"}
	chosen := selector("queue=orders,tier in (gold,silver),zone notin (a),live,!old")
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "checkout-0", Labels: map[string]string{"app": "checkout", "empty": ""}}
	bare := metav1.ObjectMeta{Namespace: "shop", Name: "cart-0"}
	short, long := metav1.Duration{Duration: 15 * time.Second}, metav1.Duration{Duration: 90500 * time.Millisecond}

	objects := map[string]runtime.Object{
		"external-empty": &external.ExternalMetricValueList{Items: []external.ExternalMetricValue{}},
		"external": &external.ExternalMetricValueList{Items: []external.ExternalMetricValue{
			{MetricName: "headroom_demand", MetricLabels: map[string]string{"policy": "checkout"}, Timestamp: at, WindowSeconds: &thirty, Value: q("2250m")},
			{MetricName: "headroom_latency_seconds", MetricLabels: map[string]string{"signal": "wait", "quantile": "", "policy": "ünïcode \"x\""}, Timestamp: before, WindowSeconds: &zero, Value: q("9200T")},
			{MetricName: "bare", MetricLabels: map[string]string{}, Timestamp: at, WindowSeconds: &thirty, Value: q("0")},
		}},
		"custom-v1beta1": &custom1.MetricValueList{Items: []custom1.MetricValue{
			{DescribedObject: pod, MetricName: "headroom_pressure", Timestamp: at, WindowSeconds: &thirty, Value: q("1")},
			{DescribedObject: node, MetricName: "jobs", Timestamp: before, WindowSeconds: &zero, Value: q("1500m"), Selector: chosen},
		}},
		"custom-v1beta2": &custom2.MetricValueList{Items: []custom2.MetricValue{
			{DescribedObject: pod, Metric: custom2.MetricIdentifier{Name: "headroom_pressure"}, Timestamp: at, WindowSeconds: &thirty, Value: q("1")},
			{DescribedObject: node, Metric: custom2.MetricIdentifier{Name: "jobs", Selector: chosen}, Timestamp: before, WindowSeconds: &zero, Value: q("1500m")},
		}},
		"pods-v1": &metrics1.PodMetricsList{Items: []metrics1.PodMetrics{
			{ObjectMeta: meta, Timestamp: at, Window: short, Containers: []metrics1.ContainerMetrics{{Name: "app", Usage: usage("250m", "123456789")}, {Name: "sidecar", Usage: usage("0", "4M")}}},
			{ObjectMeta: bare, Timestamp: before, Window: long, Containers: []metrics1.ContainerMetrics{}},
		}},
		"pods-v1beta1": &metricsBeta.PodMetricsList{Items: []metricsBeta.PodMetrics{
			{ObjectMeta: meta, Timestamp: at, Window: short, Containers: []metricsBeta.ContainerMetrics{{Name: "app", Usage: usage("250m", "123456789")}, {Name: "sidecar", Usage: usage("0", "4M")}}},
			{ObjectMeta: bare, Timestamp: before, Window: long, Containers: []metricsBeta.ContainerMetrics{}},
		}},
		"pod-v1":      &metrics1.PodMetrics{ObjectMeta: meta, Timestamp: at, Window: short, Containers: []metrics1.ContainerMetrics{{Name: "app", Usage: usage("250m", "123456789")}, {Name: "sidecar", Usage: usage("0", "4M")}}},
		"pod-v1beta1": &metricsBeta.PodMetrics{ObjectMeta: bare, Timestamp: before, Window: long, Containers: []metricsBeta.ContainerMetrics{}},
	}
	encoders := map[string]runtime.Encoder{
		".json": json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{}),
		".pb":   protobuf.NewSerializer(scheme, scheme),
	}
	for name, object := range objects {
		kinds, _, err := scheme.ObjectKinds(object)
		if err != nil {
			log.Fatal(err)
		}
		object.GetObjectKind().SetGroupVersionKind(kinds[0])
		for suffix, encoder := range encoders {
			var body bytes.Buffer
			if err := encoder.Encode(object, &body); err != nil {
				log.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(os.Args[1], name+suffix), body.Bytes(), 0o644); err != nil {
				log.Fatal(err)
			}
		}
	}
}
