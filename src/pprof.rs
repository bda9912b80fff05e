//! Profiles in profile.proto that `go tool pprof` opens.
