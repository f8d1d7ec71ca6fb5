# Both kinds of node read and write the bucket. The head alone starts and ends machines, and gives workers their profile.
locals {
  bucket_statements = [
    {
      Sid      = "List"
      Effect   = "Allow"
      Action   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
      Resource = aws_s3_bucket.this.arn
    },
    {
      Sid      = "Objects"
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
      Resource = "${aws_s3_bucket.this.arn}/*"
    },
    {
      Sid      = "Key"
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = aws_kms_key.this.arn
    },
    {
      Sid      = "Images"
      Effect   = "Allow"
      Action   = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]
      Resource = aws_ecr_repository.this.arn
    },
    {
      Sid      = "Registry"
      Effect   = "Allow"
      Action   = ["ecr:GetAuthorizationToken"]
      Resource = "*" # takes no other
    },
  ]
  head_statements = [
    {
      Sid      = "Look"
      Effect   = "Allow"
      Action   = ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "ec2:DescribeInstanceTypes", "ec2:DescribeImages"]
      Resource = "*" # takes no other
    },
    {
      Sid      = "Image"
      Effect   = "Allow"
      Action   = ["ssm:GetParameter", "ssm:GetParameters"]
      Resource = "arn:aws:ssm:${var.region}::parameter/aws/service/*"
    },
    {
      Sid    = "Start"
      Effect = "Allow"
      Action = ["ec2:RunInstances"]
      Resource = [
        for kind in ["instance", "image", "subnet", "security-group", "network-interface", "volume", "key-pair", "spot-instances-request"] :
        "arn:aws:ec2:${var.region}:*:${kind}/*"
      ]
    },
    {
      Sid       = "Name"
      Effect    = "Allow"
      Action    = ["ec2:CreateTags"]
      Resource  = "arn:aws:ec2:${var.region}:*:*/*"
      Condition = { StringEquals = { "ec2:CreateAction" = "RunInstances" } }
    },
    {
      Sid       = "OfThisCluster"
      Effect    = "Allow"
      Action    = ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances", "ec2:CreateTags", "ec2:DeleteTags"]
      Resource  = "arn:aws:ec2:${var.region}:*:instance/*"
      Condition = { StringEquals = { "aws:ResourceTag/ray-cluster-name" = var.name } }
    },
    {
      Sid       = "Workers"
      Effect    = "Allow"
      Action    = ["iam:PassRole"]
      Resource  = aws_iam_role.this["worker"].arn
      Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
    },
  ]
}

resource "aws_iam_role" "this" {
  for_each = toset(["head", "worker"])

  name = "${var.name}-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  for_each = {
    head   = concat(local.bucket_statements, local.head_statements)
    worker = local.bucket_statements
  }

  name   = "raymlops"
  role   = aws_iam_role.this[each.key].id
  policy = jsonencode({ Version = "2012-10-17", Statement = each.value })
}

resource "aws_iam_instance_profile" "this" {
  for_each = aws_iam_role.this

  name = each.value.name
  role = each.value.name
}
