"""Make buckets in the S3 store that the environment names (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...); once, and again.

python infra/buckets.py NAME [NAME ...]
"""

import sys

import boto3


def main() -> None:
    client = boto3.client("s3")
    there = {bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])}
    for name in sys.argv[1:]:
        if name not in there:
            client.create_bucket(Bucket=name)
            print(f"bucket {name} made")


if __name__ == "__main__":
    main()
