package upgrade

var acts = map[string]func(string) error{}
