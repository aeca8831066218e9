// Prints the variables that a kubelet makes of the services on its stdin, a JSON list, as a JSON list.
package main

import (
	"encoding/json"
	"log"
	"os"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
)

func main() {
	var services []*v1.Service
	if err := json.NewDecoder(os.Stdin).Decode(&services); err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(envvars.FromServices(services)); err != nil {
		log.Fatal(err)
	}
}
