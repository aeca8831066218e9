// What a program does that was built with Go and without cgo: its own resolver reads /etc/resolv.conf.
//
// lookup NAME prints the addresses of the name, one a line, and ends with 6 where there are none.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		os.Exit(2)
	}
	resolver := &net.Resolver{PreferGo: true}
	addresses, err := resolver.LookupHost(context.Background(), os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(6)
	}
	for _, address := range addresses {
		fmt.Println(address)
	}
}
