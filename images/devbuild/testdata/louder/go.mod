module example.com/louder

go 1.26
