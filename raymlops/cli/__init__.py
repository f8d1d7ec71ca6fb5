"""The command line: parse, call one public function, print. Loads no ray, torch or mlflow at start-up."""
