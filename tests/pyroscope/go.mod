// Pyroscope's own decoder of profiles. `make test` builds it with -mod=readonly.
module headroom.dev/tests/pyroscope

go 1.26.0

require (
	github.com/grafana/pyroscope/api v1.6.0
	google.golang.org/protobuf v1.36.11
)

require github.com/planetscale/vtprotobuf v0.6.1-0.20250313105119-ba97887b0a25 // indirect
