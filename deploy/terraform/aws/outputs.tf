output "overlay" {
  value = module.contract.overlay
}

output "node_env" {
  value     = module.contract.node_env
  sensitive = true
}

output "state_url" {
  value     = module.contract.state_url
  sensitive = true
}

output "image" {
  value = module.contract.image
}

output "cluster" {
  value = module.contract.cluster
}

output "mlflow_database" {
  description = "URL of the database for an MLflow server of yours: mlflow server --backend-store-uri URL."
  value       = local.urls.mlflow
  sensitive   = true
}

output "next_step" {
  description = "Makes databases and roles, once, from inside the VPC, in the security group of the nodes, with psql and aws."
  value = join("\n", [
    "export PGHOST=${aws_db_instance.this.address} PGSSLMODE=require",
    "export PGPASSWORD=\"$(aws secretsmanager get-secret-value --region ${var.region} --secret-id ${aws_db_instance.this.master_user_secret[0].secret_arn} --query SecretString --output text | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"password\"])')\"",
    "export MLFLOW_PASSWORD=${random_password.role["mlflow"].result}",
    "export OPTUNA_PASSWORD=${random_password.role["optuna"].result}",
    "export STATE_PASSWORD=${random_password.role["raymlops"].result}",
    "sh deploy/compose/databases.sh",
    "",
  ])
  sensitive = true
}
