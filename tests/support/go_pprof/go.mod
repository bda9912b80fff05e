module go_pprof

go 1.24
